"""The network of ``torchrun.py`` under Lightning: ``python benchmarks/examples/lightning_fit.py``.

Needs ``pip install lightning``.

``strategy="ddp"`` needs what plain DistributedDataParallel does; Lightning passes it on.
"""

import inspect

import lightning
import torch
from lightning.pytorch.strategies import DDPStrategy
from snntorch import utils
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchrun import BATCH, BATCHES, EPOCHS, network, samples

from snn_ext.training import step_temperature


class Pulses(lightning.LightningModule):
    """The network, its loss, and its temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        """Batches are ``[N, T, 3]``; the network takes time first."""
        x, y = batch
        utils.reset(self.net)
        loss = nn.functional.cross_entropy(self.net(x.transpose(0, 1))[-10:].mean(0), y)
        self.log("loss", loss, prog_bar=True, on_epoch=True)
        return loss

    def on_train_epoch_end(self) -> None:
        """Once per epoch, in every process."""
        step_temperature(self.net)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), 5e-3)


def main(processes: int = 2) -> lightning.Trainer:
    """Train on the CPU; returns the trainer, which has the loss."""
    lightning.seed_everything(0)
    newer = "forward_sync_buffers" in inspect.signature(nn.parallel.DistributedDataParallel.__init__).parameters
    strategy = DDPStrategy(
        process_group_backend="gloo", **{"forward_sync_buffers" if newer else "broadcast_buffers": False}
    )
    x, y = samples(BATCHES * BATCH * processes)
    loader = DataLoader(TensorDataset(x.transpose(0, 1), y), BATCH, shuffle=True)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy=strategy,
        max_epochs=EPOCHS,
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(Pulses(), loader)
    if trainer.is_global_zero:
        print(f"loss {trainer.callback_metrics['loss_epoch'].item():.3f}")
    return trainer


if __name__ == "__main__":
    main()

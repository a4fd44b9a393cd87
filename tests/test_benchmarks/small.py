"""Generated samples and small networks, so that every recipe trains in a moment; also for processes of their own."""

import torch

from benchmarks.accuracy import recipe as recipes
from benchmarks.recipes import recipe

# Of the real sets: a sample, and how many classes.
SHAPES = {
    "smnist": ((784, 1), 10),
    "psmnist": ((784, 1), 10),
    "gsc": ((101, 40), 12),
    "shd": ((250, 700), 20),
    "ssc": ((250, 700), 35),
    "mnist": ((1, 28, 28), 10),
    "fashion": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
    "nmnist": ((10, 2, 34, 34), 10),
    "cifar10dvs": ((15, 2, 128, 128), 10),
    "dvs128gesture": ((12, 2, 128, 128), 11),
    "timit": ((300, 40), 1936),
    "librispeech": ((300, 40), 1936),
}
# Another size in place of the published one; steps and pixels are those of the samples.
_SIZES = {
    "network.hidden": lambda hidden: [6] * len(hidden) if isinstance(hidden, list) else 6,
    "network.span": lambda _: 2,
    "network.max_span": lambda _: 3,
    "network.blocks": lambda blocks: [[4] * len(block) for block in blocks[:2]],
    "network.features": lambda _: 12,
    "data.steps": lambda _: 4,
    "neuron.threshold": lambda _: 0.25,  # or so few neurons would be silent
    "training.batch": lambda _: 4,
    "training.curriculum_effective": lambda _: [[4, 1], [8, 9]],
    "training.batch_valid": lambda _: 3,
    "training.length_valid": lambda _: 6,
}


def networks():
    """Everything that can be trained: recipe, task, network."""
    return [
        (name, task, network)
        for name, plan in recipes.PLANS.items()
        for task in plan.data
        for network in recipes.networks(recipe(name), task)
    ]


def chosen(name, task, network, **overrides):
    """The settings of a small network."""
    found = recipe(name)
    published = recipes.choose(found, task, network, {})
    sizes = {key: size(published[key].value) for key, size in _SIZES.items() if key in published}
    return recipes.choose(found, task, network, {**sizes, **overrides})


def samples(task, many=9, seed=3, units=None):
    """Samples of a task, with few steps and pixels."""
    generator = torch.Generator().manual_seed(seed)
    shape, classes = SHAPES[task]
    labels = torch.arange(many) % classes
    if task in ("timit", "librispeech"):
        lengths = [4 + index % 5 for index in range(many)]
        frames = [torch.randn(length, shape[1], generator=generator) for length in lengths]
        return [(x, torch.randint(classes, (len(x),), generator=generator)) for x in frames]
    small = (7, units or shape[1]) if len(shape) == 2 else (*(4,) * (len(shape) == 4), *shape[-3:-2], 8, 8)
    return [(3 * torch.rand(small, generator=generator), int(label)) for label in labels]


def parts(task, **options):
    """Parts of different sizes."""
    sizes = {"train": 9, "validation": 5, "test": 7}
    return {part: samples(task, many, seed, **options) for seed, (part, many) in enumerate(sizes.items())}


def training(name, task, network, host="snntorch", seed=0, backend="torch", **overrides):
    """A training of a small network; without kernels unless asked for, as each would be compiled first."""
    units = 140 if (name, task) == ("xu_2025", "ssc") else None
    settings = chosen(name, task, network, **overrides)
    made = recipes.prepared(name, task, network, settings, host, parts(task, units=units), SHAPES[task][1], seed)
    for module in made.net.modules():
        if hasattr(module, "backend"):
            module.backend = backend
    return made

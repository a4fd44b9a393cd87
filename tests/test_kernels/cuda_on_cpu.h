// The CUDA branch of a kernel text on the CPU, for tests: this in front of the text, RUN(kernel) behind it.
// The threads of a grid run one after the other, the last one first, so that an order they rely on shows.
#include <math.h>
#include <string.h>
#include <utility>
#define __CUDACC__
#define __device__
#define __global__
#define __forceinline__ inline

struct Index { unsigned x, y, z; };
static thread_local Index blockIdx, threadIdx, blockDim;
static inline float __uint_as_float(unsigned bits) { float number; memcpy(&number, &bits, 4); return number; }
static inline unsigned __float_as_uint(float number) { unsigned bits; memcpy(&bits, &number, 4); return bits; }

// How the driver would read the arguments: q for pointers and integers, d for doubles, 8 bytes each.
template <class A> constexpr char letter = '?';
template <class A> constexpr char letter<A*> = 'q';
template <> constexpr char letter<long long> = 'q';
template <> constexpr char letter<double> = 'd';
template <class... A> const char* letters(void (*)(A...)) {
  static const char all[] = {letter<A>..., 0};
  return all;
}

template <class... A, size_t... I>
void run(void (*kernel)(A...), unsigned blocks, unsigned threads, const char* arguments, std::index_sequence<I...>) {
  blockDim = {threads, 1, 1};
  for (unsigned b = blocks; b-- > 0;) for (unsigned t = threads; t-- > 0;) {
    blockIdx.x = b;
    threadIdx.x = t;
    kernel(*(const A*)(arguments + 8 * I)...);
  }
}
template <class... A> void run(void (*kernel)(A...), unsigned blocks, unsigned threads, const char* arguments) {
  run(kernel, blocks, threads, arguments, std::index_sequence_for<A...>());
}
#define RUN(kernel) \
  extern "C" const char* letters_##kernel() { return letters(kernel); } \
  extern "C" void run_##kernel(unsigned blocks, unsigned threads, const char* arguments) { \
    run(kernel, blocks, threads, arguments); \
  }

// A neuron over time: the loop, the checkpoints and the adjoint, around functions of one element that
// are generated from the neuron's equations. One text for NVRTC, where a thread owns an element, and for g++
// or clang++, where one call does the work of a block of threads, in vector lanes.
//
// In front of this text stand the lists INPUTS, STATES (in a backward pass without observers), FELT (states without
// observers), TENSORS, NUMBERS, LEARNED, FIXED (what does not change over time and takes long to compute), KEPT (what
// the replay of a step leaves to its gradient), all of them names, for the macros below; KEEPS (whether KEPT has any),
// SHARED (values alike for all elements), real (type of the arithmetic), IO (type of inputs and outputs), K (steps per
// checkpoint), and on the CPU W (the largest block).
// Elements lie in rows: element n of step t is at [t * row + n]. A row of 0 repeats one step.
// What is put before a name of the equations never begins like another one (glanes_, not lanes_g_): a
// parameter may be called g_v.

// ---------------------------------------------------------------- two kinds of machine
typedef long long ll;
#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
  #define DEV static __device__ __forceinline__
  #define KERNEL extern "C" __global__ void
  #define W 1
  #define FIRST ((ll)blockIdx.x * blockDim.x + threadIdx.x)
  #define OWNED 1
  #define LANES(j) for (int j = 0; j < 1; ++j)
  #define ALIGNED
  #define EACH_STEP _Pragma("unroll")
  // K loads are issued before the first is used: a GPU hides latency with loads in flight.
  #define FETCH(...) __VA_ARGS__
  #define FETCHED(fetched, direct) fetched
  // A function costs a GPU less than the registers to keep its value in.
  #define REPLAYED (K - 1)
  #define KEEP(...)
  #define RECALL real s; STATES(STATE_RESULTS) KEPT(RESULT) STEP; (void)s;
  #define HINT(pointer)
#else
  #define DEV static inline __attribute__((always_inline))
  #define KERNEL static void
  #define LANES(j) _Pragma("omp simd") for (int j = 0; j < m; ++j)
  #define ALIGNED alignas(64)
  #define EACH_STEP
  #define FETCH(...)
  #define FETCHED(fetched, direct) direct
  #define REPLAYED (K - 1 + KEEPS)
  #define KEEP(...) __VA_ARGS__
  #define RECALL KEPT(LOAD_KEPT)
  // The next row lies N elements on, which no hardware prefetcher guesses. Into the second cache, as the first is full
  // of states; and only rows that are read: with those that are written too, forward took 1.06 to 1.36 times as long.
  #define HINT(pointer) for (int j = 0; j < m; j += 64 / (int)sizeof(*(pointer))) __builtin_prefetch((pointer) + j, 0, 2);
  struct Index { unsigned x, y; };
  static thread_local Index blockIdx, blockDim;
  #define FIRST ((ll)blockIdx.x * blockDim.x)
  #define OWNED blockDim.x
  DEV float __uint_as_float(unsigned u) { float f; __builtin_memcpy(&f, &u, 4); return f; }
  DEV unsigned __float_as_uint(float f) { unsigned u; __builtin_memcpy(&u, &f, 4); return u; }
  DEV float rintf(float a) { return __builtin_rintf(a); }
  DEV double rint(double a) { return __builtin_rint(a); }
  #define BUILTIN(name) \
    DEV float name##f(float a) { return __builtin_##name##f(a); } \
    DEV double name(double a) { return __builtin_##name(a); }
  BUILTIN(fabs) BUILTIN(trunc) BUILTIN(floor) BUILTIN(ceil) BUILTIN(sqrt) BUILTIN(exp) BUILTIN(log) BUILTIN(log1p)
  BUILTIN(expm1) BUILTIN(sin) BUILTIN(cos) BUILTIN(atan) BUILTIN(tanh) BUILTIN(erf)
  DEV float powf(float a, float b) { return __builtin_powf(a, b); }
  // Not a * a where b is 2, which rounds otherwise: Python does not.
  DEV double pow(double a, double b) { __asm__("" : "+m"(b)); return __builtin_pow(a, b); }
#endif
#define INFINITE (1e300 * 1e300)
#define NOT_A_NUMBER (INFINITE - INFINITE)

struct bf16 { unsigned short bits; };  // storage only
DEV float ld(const float* p) { return *p; }
DEV double ld(const double* p) { return *p; }
DEV float ld(const bf16* p) { return __uint_as_float((unsigned)p->bits << 16); }
DEV void st(float* p, float v) { *p = v; }
DEV void st(double* p, double v) { *p = v; }
DEV void st(bf16* p, float v) {  // to nearest, ties to even; a NaN must not round to infinity
  const unsigned u = __float_as_uint(v);
  const unsigned rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  p->bits = (unsigned short)((u & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

// ---------------------------------------------------------------- functions the equations may use
#define BOTH(name, function) \
  DEV float name(float a) { return function##f(a); } \
  DEV double name(double a) { return function(a); }
BOTH(abs_, fabs) BOTH(trunc_, trunc) BOTH(floor_, floor) BOTH(ceil_, ceil) BOTH(rint_, rint) BOTH(sqrt_, sqrt)
BOTH(log_, log) BOTH(log1p_, log1p) BOTH(expm1_, expm1) BOTH(sin_, sin) BOTH(cos_, cos) BOTH(atan_, atan) BOTH(tanh_, tanh)
BOTH(erf_, erf)
DEV float pow_(float a, float b) { return powf(a, b); }
DEV double pow_(double a, double b) { return pow(a, b); }
template <class T> DEV T minimum_(T a, T b) { return a < b || a != a ? a : b; }
template <class T> DEV T maximum_(T a, T b) { return a > b || a != a ? a : b; }
template <class T> DEV T clamp_(T a, T low, T high) {
  const T raised = a < low ? low : a;
  return raised > high ? high : raised;
}
DEV double exp_(double a) { return exp(a); }
DEV float exp_(float a) {
  // 2^n times a polynomial in the rest: libm's is not vectorised, and a GPU's rounds differently.
  // Clamped to -104 and 89 as bits, in the order of which compilers find minima; a NaN is put back below.
  const unsigned above = __float_as_uint(a) < 0xc2d00000u ? __float_as_uint(a) : 0xc2d00000u;
  const int within = (int)above < 0x42b20000 ? (int)above : 0x42b20000;
  const float c = __uint_as_float((unsigned)within);
  const float n = rintf(c * 1.44269504f);
  const float r = (c - n * 0.693359375f) + n * 2.12194440e-4f;
  float y = 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * (r * r) + r + 1.0f;
  // In two factors, so that subnormal results come out.
  const int half = (int)n / 2, rest = (int)n - half;
  y = y * __uint_as_float((unsigned)(half + 127) << 23) * __uint_as_float((unsigned)(rest + 127) << 23);
  return a != a ? a : y;
}

// ---------------------------------------------------------------- the equations
//@EQUATIONS@

// ---------------------------------------------------------------- the loop
#define HERE \
  const ll n = FIRST; \
  if (n >= N) return; \
  const int m = N - n < OWNED ? (int)(N - n) : (int)OWNED; (void)m;
#define INPUT_ARGUMENT(x) const IO* __restrict__ in_##x, ll row_##x,
#define STATE_ARGUMENT(u) const real* __restrict__ from_##u, double fill_##u,
#define TENSOR_ARGUMENT(p) const real* __restrict__ tensor_##p, ll each_##p,
#define NUMBER_ARGUMENT(c) , double c
#define TENSOR_LANES(p) ALIGNED real lanes_##p[W];
// Whether a pointer is null is asked outside the lanes, which would not become vectors otherwise.
#define LOAD_LANES(lanes, given, code, otherwise) \
  if (given) LANES(j) lanes[j] = code; \
  else { const real same = otherwise; LANES(j) lanes[j] = same; }
#define LOAD_TENSOR_LANES(p) LOAD_LANES(lanes_##p, each_##p, tensor_##p[n + j], *tensor_##p)
#define LOAD_TENSOR(p) const real p_##p = lanes_##p[j];
#define FETCH_INPUT(x) real fetched_##x[K][W]; EACH_STEP for (int i = 0; i < K; ++i) if (t0 + i < T) LANES(j) \
    fetched_##x[i][j] = ld(in_##x + (t0 + i) * row_##x + n + j);
#define LOAD_INPUT(x) const real x_##x = FETCHED(fetched_##x[i][j], ld(in_##x + (t0 + i) * row_##x + n + j));
#define STATE_RESULTS(u) real h_##u, n_##u;
#define RESULT(k) real k;
#define FIXED_LANES(k) ALIGNED real lanes_##k[W];
#define STORE_FIXED(k) lanes_##k[j] = k;
#define LOAD_FIXED(k) const real k = lanes_##k[j];
#define PREPARE_LANES LANES(j) { TENSORS(LOAD_TENSOR) FIXED(RESULT) PREPARE; FIXED(STORE_FIXED) }
#define COUNT(u) 1 +

#define HINT_INPUT(x) HINT(in_##x + (t0 + i + 1) * row_##x + n)

#ifdef FORWARD
// The output, the final states, the states every K steps for backward() unless `checkpoints` is null, and
// with TRACE the carried states of every step.
#define FINAL_ARGUMENT(u) real* __restrict__ final_##u,
#define STATE_LANES(u) ALIGNED real lanes_##u[W];
#define LOAD_INITIAL(u) LOAD_LANES(lanes_##u, from_##u, from_##u[n + j], (real)fill_##u)
#define SAVE_CHECKPOINT(u) LANES(j) checkpoint[j] = lanes_##u[j]; checkpoint += N;
#define LOAD_STATE(u) const real u_##u = lanes_##u[j];
#if BEFORE_RESET
  #define CARRIED(u) h_##u
  #define STORE_STATE(u) lanes_##u[j] = last ? h_##u : n_##u;
#else
  #define CARRIED(u) n_##u
  #define STORE_STATE(u) lanes_##u[j] = n_##u;
#endif
#if TRACE
  #define TRACE_ARGUMENT(u) real* __restrict__ trace_##u,
  #define STORE_TRACE(u) trace_##u[o] = CARRIED(u);
#else
  #define TRACE_ARGUMENT(u)
  #define STORE_TRACE(u)
#endif
#define STORE_FINAL(u) final_##u[n + j] = lanes_##u[j];

KERNEL forward(INPUTS(INPUT_ARGUMENT) STATES(STATE_ARGUMENT) TENSORS(TENSOR_ARGUMENT) IO* __restrict__ out,
               STATES(FINAL_ARGUMENT) STATES(TRACE_ARGUMENT) real* __restrict__ checkpoints, ll T, ll N
               NUMBERS(NUMBER_ARGUMENT)) {
  HERE
  SHARED
  STATES(STATE_LANES) TENSORS(TENSOR_LANES) FIXED(FIXED_LANES)
  STATES(LOAD_INITIAL) TENSORS(LOAD_TENSOR_LANES)
  PREPARE_LANES
  for (ll t0 = 0; t0 < T; t0 += K) {
    FETCH(INPUTS(FETCH_INPUT))
    if (checkpoints && t0) {
      real* __restrict__ checkpoint = checkpoints + (t0 / K - 1) * (FELT(COUNT) 0) * N + n;
      FELT(SAVE_CHECKPOINT)
    }
    EACH_STEP for (int i = 0; i < K; ++i) if (t0 + i < T) {
      INPUTS(HINT_INPUT)
      const bool last = t0 + i == T - 1; (void)last;
      LANES(j) {
        const ll o = (t0 + i) * N + n + j;
        INPUTS(LOAD_INPUT) STATES(LOAD_STATE) TENSORS(LOAD_TENSOR) FIXED(LOAD_FIXED)
        real s; STATES(STATE_RESULTS)
        STEP;
        st(out + o, s);
        STATES(STORE_TRACE) STATES(STORE_STATE)
      }
    }
  }
  LANES(j) { STATES(STORE_FINAL) }
}
#endif

#ifdef BACKWARD
// The gradients of the inputs, of the initial states where `gfrom_*` is not null, and of every learned
// tensor per element. Segments of K steps from the end: replay the states from a checkpoint, then the
// gradients of the steps in turn.
#define GRAD_INPUT_ARGUMENT(x) IO* __restrict__ grad_##x, ll grow_##x,
#define GRAD_STATE_ARGUMENT(u) const real* __restrict__ gfinal_##u, real* __restrict__ gfrom_##u,
#define GRAD_TENSOR_ARGUMENT(p) real* __restrict__ grad_##p,
#if TRACE
  #define GRAD_TRACE_ARGUMENT(u) const real* __restrict__ gtrace_##u, ll trow_##u,
#else
  #define GRAD_TRACE_ARGUMENT(u)
#endif
#define STATE_LANES(u) ALIGNED real at_##u[REPLAYED + 1][W], glanes_##u[W];
#define KEPT_LANES(k) ALIGNED real lanes_##k[K][W];
#define STORE_KEPT(k) lanes_##k[i][j] = k;
#define LOAD_KEPT(k) const real k = lanes_##k[i][j];
#define LEARNED_LANES(p) ALIGNED real gplanes_##p[W];
#define LOAD_GRAD_FINAL(u) LOAD_LANES(glanes_##u, gfinal_##u, gfinal_##u[n + j], 0)
#define LOAD_GRAD_TRACE_LAST(u) glanes_##u[j] += gtrace_##u[(T - 1) * trow_##u + n + j];
#define ZERO_LEARNED(p) gplanes_##p[j] = 0;
#define LOAD_INITIAL(u) LOAD_LANES(at_##u[0], from_##u, from_##u[n + j], (real)fill_##u)
#define LOAD_CHECKPOINT(u) LANES(j) at_##u[0][j] = checkpoint[j]; checkpoint += N;
#define LOAD_STATE(u) const real u_##u = at_##u[i][j];
#define STORE_STATE(u) at_##u[i + 1][j] = n_##u;
#define LOAD_GRAD_STATE(u) const real g_##u = glanes_##u[j];
#define STORE_GRAD_STATE(u) glanes_##u[j] = to_g_##u;
#define GRAD_STATE_RESULTS(u) real to_g_##u;
#define GRAD_INPUT_RESULTS(x) real to_gx_##x;
#define GRAD_TENSOR_RESULTS(p) real to_gp_##p;
#define STORE_GRAD_INPUT(x) st(grad_##x + (t0 + i) * grow_##x + n + j, to_gx_##x);
#define ADD_LEARNED(p) gplanes_##p[j] += to_gp_##p;
#define HINT_PREVIOUS_INPUT(x) HINT(in_##x + (t0 - 1 - i) * row_##x + n)
#define STORE_GRAD_FROM(u) if (gfrom_##u) LANES(j) gfrom_##u[n + j] = glanes_##u[j];
#define STORE_LEARNED(p) LANES(j) grad_##p[n + j] = gplanes_##p[j];
#if TRACE && BEFORE_RESET
  #define LOAD_GRAD_TRACE(u) const real q_##u = gtrace_##u[(t0 + i) * trow_##u + n + j];
#elif TRACE
  #define LOAD_GRAD_TRACE(u) const real q_##u = t0 + i ? gtrace_##u[(t0 + i - 1) * trow_##u + n + j] : (real)0;
#else
  #define LOAD_GRAD_TRACE(u)
#endif
#define GRADIENT_LANES(GRADIENT) LANES(j) { \
    INPUTS(LOAD_INPUT) STATES(LOAD_STATE) TENSORS(LOAD_TENSOR) FIXED(LOAD_FIXED) RECALL \
    STATES(LOAD_GRAD_STATE) STATES(LOAD_GRAD_TRACE) \
    const real gs = FETCHED(gs_fetched[i][j], ld(all_gs + (t0 + i) * gs_row + n + j)); \
    INPUTS(GRAD_INPUT_RESULTS) STATES(GRAD_STATE_RESULTS) LEARNED(GRAD_TENSOR_RESULTS) \
    GRADIENT; \
    INPUTS(STORE_GRAD_INPUT) STATES(STORE_GRAD_STATE) LEARNED(ADD_LEARNED) \
  }

KERNEL backward(INPUTS(INPUT_ARGUMENT) STATES(STATE_ARGUMENT) TENSORS(TENSOR_ARGUMENT)
                const real* __restrict__ checkpoints, const IO* __restrict__ all_gs, ll gs_row,
                STATES(GRAD_TRACE_ARGUMENT) INPUTS(GRAD_INPUT_ARGUMENT) STATES(GRAD_STATE_ARGUMENT)
                LEARNED(GRAD_TENSOR_ARGUMENT) ll T, ll N NUMBERS(NUMBER_ARGUMENT)) {
  HERE
  SHARED
  STATES(STATE_LANES) TENSORS(TENSOR_LANES) FIXED(FIXED_LANES) KEEP(KEPT(KEPT_LANES)) LEARNED(LEARNED_LANES)
  STATES(LOAD_GRAD_FINAL) TENSORS(LOAD_TENSOR_LANES)
  PREPARE_LANES
  LANES(j) { LEARNED(ZERO_LEARNED) }
#if TRACE
  LANES(j) { STATES(LOAD_GRAD_TRACE_LAST) }
#endif
  for (ll t0 = (T - 1) / K * K; t0 >= 0; t0 -= K) {
    FETCH(INPUTS(FETCH_INPUT) real gs_fetched[K][W]; EACH_STEP for (int i = 0; i < K; ++i) if (t0 + i < T) LANES(j)
      gs_fetched[i][j] = ld(all_gs + (t0 + i) * gs_row + n + j);)
    if (t0) {
      const real* __restrict__ checkpoint = checkpoints + (t0 / K - 1) * (FELT(COUNT) 0) * N + n;
      STATES(LOAD_CHECKPOINT)
    } else { STATES(LOAD_INITIAL) }
    EACH_STEP for (int i = 0; i < REPLAYED; ++i) if (t0 + i + K - REPLAYED < T) LANES(j) {
      INPUTS(LOAD_INPUT) STATES(LOAD_STATE) TENSORS(LOAD_TENSOR) FIXED(LOAD_FIXED)
      real s; STATES(STATE_RESULTS) KEPT(RESULT)
      STEP;
      (void)s; STATES(STORE_STATE) KEEP(KEPT(STORE_KEPT))
    }
    EACH_STEP for (int i = K - 1; i >= 0; --i) if (t0 + i < T) {
      HINT(all_gs + (t0 + i - 1) * gs_row + n) INPUTS(HINT_PREVIOUS_INPUT)
#if BEFORE_RESET
      if (t0 + i == T - 1) { GRADIENT_LANES(LAST_STEP_GRADIENT) } else
#endif
      { GRADIENT_LANES(STEP_GRADIENT) }
    }
  }
  STATES(STORE_GRAD_FROM) LEARNED(STORE_LEARNED)
}

// One stage of a sum over rows, in place, in each of `many` arrays: element c becomes the sum of elements c,
// c + N, c + 2 N, ... below `count`. The order does not depend on threads or grid.
KERNEL fold(real* __restrict__ data, ll many, ll distance, ll count, ll N) {
  HERE
  for (ll a = 0; a < many; ++a) {
    real* __restrict__ array = data + a * distance + n;
    for (ll from = N; from < count; from += N) LANES(j) if (from + n + j < count) array[j] += array[from + j];
  }
}
#endif

#if !defined(__CUDACC__) && !defined(__CUDACC_RTC__)
// Launch a kernel over a grid as the CUDA driver would; every argument occupies 8 bytes.
template <int... I> struct Indices {};
template <int n, int... I> struct Count : Count<n - 1, n - 1, I...> {};
template <int... I> struct Count<0, I...> { typedef Indices<I...> type; };
template <class... A, int... I> static void call(void (*kernel)(A...), const char* arguments, Indices<I...>) {
  kernel(*(const A*)(arguments + 8 * I)...);
}
template <class... A> static void launch(void (*kernel)(A...), ll grid, int block, int threads, const char* arguments) {
  if (threads > grid) threads = (int)grid;
  #pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
  for (ll b = 0; b < grid; ++b) {
    blockIdx.x = (unsigned)b;
    blockDim.x = (unsigned)block;
    call(kernel, arguments, typename Count<sizeof...(A)>::type());
  }
}
#define LAUNCH(name) extern "C" void launch_##name(ll grid, int block, int threads, const char* arguments) { \
    launch(name, grid, block, threads, arguments); \
  }
#ifdef FORWARD
LAUNCH(forward)
#endif
#ifdef BACKWARD
LAUNCH(backward) LAUNCH(fold)
#endif
#endif

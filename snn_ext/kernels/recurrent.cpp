// What recurrent layers need besides their neurons' kernels, on a CPU: products with spikes, and the loop over
// steps. For the host's C++ compiler only; `real` is float or double.

// ---------------------------------------------------------------- products with spikes
// Most spikes are zero, and each of the others adds a row of the other matrix. That comes in columns, COLUMNS at a
// time, so that a spike's row is added to sums that stay in registers, and a column of it fits into the second cache.

typedef long long ll;
typedef real Vector __attribute__((vector_size(32), aligned(sizeof(real)), may_alias));
constexpr int LANES = 32 / sizeof(real), COLUMNS = 8 * LANES;
constexpr ll ROWS = 256;  // of the gradient, at a time

static inline ll columns_of(ll to) { return (to + COLUMNS - 1) / COLUMNS; }

// sums[c] += value[k] * matrix[index[k]][c] for all k in turn.
static inline __attribute__((always_inline)) void add_rows(
    real* sums, const int* index, const real* value, ll many, const real* matrix) {
  Vector* home = (Vector*)sums;
  Vector a = home[0], b = home[1], c = home[2], d = home[3], e = home[4], f = home[5], g = home[6], h = home[7];
  for (ll k = 0; k < many; ++k) {
    const Vector* row = (const Vector*)(matrix + (ll)index[k] * COLUMNS);
    const real v = value[k];
    a += v * row[0]; b += v * row[1]; c += v * row[2]; d += v * row[3];
    e += v * row[4]; f += v * row[5]; g += v * row[6]; h += v * row[7];
  }
  home[0] = a; home[1] = b; home[2] = c; home[3] = d; home[4] = e; home[5] = f; home[6] = g; home[7] = h;
}

// Where the nonzeros of a row are, and what; returns how many.
static inline ll compress(const real* row, ll from, int* index, real* value) {
  ll k = 0;
  for (ll j = 0; j < from; ++j) {
    index[k] = (int)j;
    value[k] = row[j];
    k += row[j] != 0;
  }
  return k;
}

// Whether all are finite: a difference from itself is zero.
static inline bool finite(const real* x, ll many) {
  real sum = 0;
  #pragma omp simd reduction(+ : sum)
  for (ll i = 0; i < many; ++i) sum += x[i] - x[i];
  return sum == 0;
}

extern "C" ll nonzeros(const real* s, ll many) {
  ll count = 0;
  #pragma omp simd reduction(+ : count)
  for (ll i = 0; i < many; ++i) count += s[i] != 0;
  return count;
}

// weight [to, from] into columns; returns whether it is finite: 0 times infinity is not nothing.
extern "C" int pack(const real* weight, ll to, ll from, real* packed) {
  for (ll b = 0; b < columns_of(to); ++b)
    for (ll j = 0; j < from; ++j)
      for (int c = 0; c < COLUMNS; ++c) {
        const ll i = b * COLUMNS + c;
        packed[(b * from + j) * COLUMNS + c] = i < to ? weight[i * from + j] : 0;
      }
  return finite(weight, to * from);
}

// Where the nonzeros of rows are.
struct Nonzeros { int* index; real* value; ll* many; };

static inline void compress_rows(const real* s, ll first, ll end, ll from, const Nonzeros& found) {
  for (ll r = first; r < end; ++r)
    found.many[r] = compress(s + r * from, from, found.index + r * from, found.value + r * from);
}

// out = x + s weight^T in rows [first, end) of one column.
static inline void add_column(const Nonzeros& s, ll first, ll end, ll from, ll to, ll column, const real* packed,
                              const real* x, real* out) {
  const int width = (int)(to - column * COLUMNS < COLUMNS ? to - column * COLUMNS : COLUMNS);
  for (ll r = first; r < end; ++r) {
    const ll at = r * to + column * COLUMNS;
    alignas(64) real sums[COLUMNS] = {};
    for (int c = 0; c < width; ++c) sums[c] = x[at + c];
    add_rows(sums, s.index + r * from, s.value + r * from, s.many[r], packed + column * from * COLUMNS);
    for (int c = 0; c < width; ++c) out[at + c] = sums[c];
  }
}

// out[p] = x[p] + s weight[p]^T for every part p, all [rows, to]. index, value: room for rows * from.
extern "C" void product(const real* s, ll rows, ll from, ll to, ll parts, const real* const* packed,
                        const real* const* x, real* const* out, int* index, real* value, ll* many, int threads) {
  const ll columns = columns_of(to);
  const Nonzeros found = {index, value, many};
  #pragma omp parallel num_threads(threads) if (threads > 1)
  {
    #pragma omp for schedule(static)
    for (ll r = 0; r < rows; ++r) compress_rows(s, r, r + 1, from, found);
    #pragma omp for schedule(static)
    for (ll each = 0; each < parts * columns; ++each) {
      const ll p = each / columns;
      add_column(found, 0, rows, from, to, each % columns, packed[p], x[p], out[p]);
    }
  }
}

// Per part p: result[p] [to, from] = g[p]^T s for g[p] [rows, to] and s [rows, from]; returns whether all g are
// finite. A column of sums belongs to one thread, and all rows are added to it in turn, so the result does not depend
// on the number of threads. Room: sums for parts * columns * from * COLUMNS and tiles for parts * columns * ROWS *
// COLUMNS, both zero; index and value for from * ROWS, many for from.
extern "C" int gradient(const real* s, ll rows, ll from, ll to, ll parts, const real* const* g, real* const* result,
                        real* sums, int* index, real* value, int* many, real* tiles, int threads) {
  const ll columns = columns_of(to);
  int proper = 1;
  #pragma omp parallel num_threads(threads) if (threads > 1) reduction(&& : proper)
  {
    for (ll start = 0; start < rows; start += ROWS) {
      const ll now = rows - start < ROWS ? rows - start : ROWS;
      // The rows of g into columns; and where the nonzeros of every column of s are.
      #pragma omp for schedule(static) nowait
      for (ll r = 0; r < now; ++r)
        for (ll p = 0; p < parts; ++p) {
          const real* row = g[p] + (start + r) * to;
          proper = proper && finite(row, to);
          for (ll b = 0; b < columns; ++b) {
            real* tile = tiles + ((p * columns + b) * ROWS + r) * COLUMNS;
            const int width = (int)(to - b * COLUMNS < COLUMNS ? to - b * COLUMNS : COLUMNS);
            for (int c = 0; c < width; ++c) tile[c] = row[b * COLUMNS + c];
          }
        }
      #pragma omp for schedule(static)
      for (ll first = 0; first < from; first += 16) {
        const ll end = first + 16 < from ? first + 16 : from;
        for (ll j = first; j < end; ++j) many[j] = 0;
        for (ll r = 0; r < now; ++r)
          for (ll j = first; j < end; ++j) {
            const real v = s[(start + r) * from + j];
            const ll at = j * ROWS + many[j];
            index[at] = (int)r;
            value[at] = v;
            many[j] += v != 0;
          }
      }
      #pragma omp for schedule(static)
      for (ll each = 0; each < parts * columns; ++each)
        for (ll j = 0; j < from; ++j)
          add_rows(sums + (each * from + j) * COLUMNS, index + j * ROWS, value + j * ROWS, many[j],
                   tiles + each * ROWS * COLUMNS);
    }
    #pragma omp for schedule(static)
    for (ll each = 0; each < parts * columns; ++each) {
      const ll p = each / columns, b = each % columns;
      for (int c = 0; c < COLUMNS && b * COLUMNS + c < to; ++c)
        for (ll j = 0; j < from; ++j) result[p][(b * COLUMNS + c) * from + j] = sums[(each * from + j) * COLUMNS + c];
    }
  }
  return proper;
}

// ---------------------------------------------------------------- the loop over steps
// Samples do not hear each other, so each thread takes its own through all steps and waits for nobody. The neuron is a
// compiled kernel, launched over a step of a thread's samples; the dense product is torch's own BLAS.

typedef void (*Launch)(ll grid, int block, int threads, const char* arguments);
typedef void (*Gemm)(const char*, const char*, const int*, const int*, const int*, const real*, const real*,
                     const int*, const real*, const int*, const real*, real*, const int*);

// An address among a kernel's arguments, and how it moves with the step and the element.
struct Move { ll slot, base, step, size, period, phase; };

struct Steps {
  ll steps, rows, size, parts, span, threads;  // of each step `rows` rows of `size` neurons; lags if there are any
  ll block, bytes, count, moves;               // elements of a launch; of the arguments size, place of N, how many move
  const Launch *inside, *last;                 // the kernel of all steps but the last, and of that one
  Gemm gemm;
  const char* given;                           // arguments of step 0
  const Move* move;
  const real* const* weight;                   // per part [size, size]
  const real* const* packed;                   // the same in columns; null: zeros are not skipped
  double share;                                // of nonzeros, up to which they are
  const real* lags;                            // weights of the lags K to 1, or null
  char* scratch;                               // per thread `apart` bytes
  ll apart;
};

// The kernel over elements [from, to) of step t.
static void launch(const Steps& s, char* arguments, ll t, ll from, ll to) {
  for (const Move* m = s.move; m < s.move + s.moves; ++m)
    *(ll*)(arguments + 8 * m->slot) = m->base + (t + m->phase) % m->period * m->step + from * m->size;
  *(ll*)(arguments + 8 * s.count) = to - from;
  (*(t == s.steps - 1 ? s.last : s.inside))((to - from + s.block - 1) / s.block, (int)s.block, 1, arguments);
}

// out = base + sum over k of lags[k] steps[k], in elements [from, to) of steps of n; base may be null.
static void weigh(const real* steps, const real* lags, ll many, ll n, ll from, ll to, const real* base, real* out) {
  constexpr ll PIECE = 512;
  for (ll start = from; start < to; start += PIECE) {
    const ll width = to - start < PIECE ? to - start : PIECE;
    alignas(64) real sums[PIECE];
    for (ll c = 0; c < width; ++c) sums[c] = base ? base[start + c] : 0;
    for (ll k = 0; k < many; ++k) {
      const real w = lags[k];
      const real* row = steps + k * n + start;
      #pragma omp simd
      for (ll c = 0; c < width; ++c) sums[c] += w * row[c];
    }
    for (ll c = 0; c < width; ++c) out[start + c] = sums[c];
  }
}

// c = b + a w^T (back: b + a w) for so many rows; b may be null, or c.
static void dense(const Steps& s, const real* a, const real* w, const real* b, real* c, ll rows, bool back) {
  // Wider than a BLAS with short integers reads: one with long ones finds what it expects as well.
  const ll wide[] = {s.size, rows};
  const int *n = (const int*)wide, *m = (const int*)(wide + 1);
  const real one = 1, zero = 0;
  if (b && b != c) __builtin_memcpy(c, b, sizeof(real) * rows * s.size);
  s.gemm(back ? "N" : "T", "N", n, m, n, &one, w, n, a, n, b ? &one : &zero, c, n);
}

// A thread's rows, and its own copy of the arguments.
#define EACH_THREAD \
  const Steps& s = *job; \
  const ll n = s.rows * s.size; \
  _Pragma("omp parallel for num_threads((int)s.threads) if (s.threads > 1) schedule(static)") \
  for (ll thread = 0; thread < s.threads; ++thread) { \
    const ll first = s.rows * thread / s.threads, end = s.rows * (thread + 1) / s.threads; \
    const ll from = first * s.size, to = end * s.size; \
    char* arguments = s.scratch + thread * s.apart; \
    __builtin_memcpy(arguments, s.given, s.bytes);

// heard: the outputs, from `span` steps before the first on. x, drives: per part [steps, rows, size]. The scratch holds
// arguments; of a step's nonzeros the number in a row; a step; and of the nonzeros value and index.
extern "C" void forward_steps(const Steps* job, const real* heard, const real* const* x, real* const* drives) {
  EACH_THREAD
    ll* many = (ll*)(arguments + s.bytes);
    real *mean = (real*)(many + s.rows), *value = mean + n;
    const Nonzeros found = {(int*)(value + s.rows * s.size), value, many};
    for (ll t = 0; t < s.steps; ++t) {
      const real* source = heard + t * n;
      if (s.lags) {
        weigh(source, s.lags, s.span, n, from, to, 0, mean);
        source = mean;
      }
      if (s.packed && nonzeros(source + from, to - from) <= s.share * (to - from)) {
        compress_rows(source, first, end, s.size, found);
        for (ll p = 0; p < s.parts; ++p)
          for (ll b = 0; b < columns_of(s.size); ++b)
            add_column(found, first, end, s.size, s.size, b, s.packed[p], x[p] + t * n, drives[p] + t * n);
      } else {
        for (ll p = 0; p < s.parts; ++p)
          dense(s, source + from, s.weight[p], x[p] + t * n + from, drives[p] + t * n + from, end - first, false);
      }
      launch(s, arguments, t, from, to);
    }
  }
}

// above: the gradient of the outputs from outside; total: room for a step; of_drives: per part [steps, rows, size].
// With lags, sent: of the means, the last step first, behind K steps of zeros. part, sums: gradients of `learned` values
// per element, of a step and of all.
extern "C" void backward_steps(const Steps* job, const real* above, real* total, const real* const* of_drives,
                               real* sent, const real* part, real* sums, ll learned) {
  EACH_THREAD
    for (ll t = s.steps - 1; t >= 0; --t) {
      const real* direct = above + t * n;
      if (s.lags) {
        weigh(sent + (s.steps - 1 - t) * n, s.lags, s.span, n, from, to, direct, total);
      } else if (t + s.span < s.steps) {
        for (ll p = 0; p < s.parts; ++p)
          dense(s, of_drives[p] + (t + s.span) * n + from, s.weight[p], (p ? total : direct) + from, total + from,
                end - first, true);
      } else {
        __builtin_memcpy(total + from, direct + from, sizeof(real) * (to - from));
      }
      launch(s, arguments, t, from, to);
      for (ll i = 0; i < learned; ++i)
        for (ll e = i * n + from; e < i * n + to; ++e) sums[e] += part[e];
      if (s.lags) {
        real* back = sent + (s.span + s.steps - 1 - t) * n + from;
        for (ll p = 0; p < s.parts; ++p)
          dense(s, of_drives[p] + t * n + from, s.weight[p], p ? back : 0, back, end - first, true);
      }
    }
  }
}

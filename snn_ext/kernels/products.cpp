// Products with spikes, most of which are zero: each spike adds a row of the other matrix. For the host's C++
// compiler only; `real` is float or double.
// The other matrix comes in columns, COLUMNS at a time, so that a spike's row is added to sums that stay in
// registers, and a column of it fits into the second cache.

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

// out[p] = x[p] + s weight[p]^T for every part p, all [rows, to]. index, value: room for rows * (from + 1).
extern "C" void product(const real* s, ll rows, ll from, ll to, ll parts, const real* const* packed,
                        const real* const* x, real* const* out, int* index, real* value, ll* many, int threads) {
  const ll columns = columns_of(to);
  #pragma omp parallel num_threads(threads) if (threads > 1)
  {
    #pragma omp for schedule(static)
    for (ll r = 0; r < rows; ++r)
      many[r] = compress(s + r * from, from, index + r * (from + 1), value + r * (from + 1));
    #pragma omp for schedule(static)
    for (ll each = 0; each < parts * columns; ++each) {
      const ll p = each / columns, b = each % columns;
      const int width = (int)(to - b * COLUMNS < COLUMNS ? to - b * COLUMNS : COLUMNS);
      for (ll r = 0; r < rows; ++r) {
        const real* from_x = x[p] + r * to + b * COLUMNS;
        real* to_out = out[p] + r * to + b * COLUMNS;
        alignas(64) real sums[COLUMNS] = {};
        for (int c = 0; c < width; ++c) sums[c] = from_x[c];
        add_rows(sums, index + r * (from + 1), value + r * (from + 1), many[r], packed[p] + b * from * COLUMNS);
        for (int c = 0; c < width; ++c) to_out[c] = sums[c];
      }
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

// rotary: (x1, x2) -> (x1 cos t - x2 sin t, x2 cos t + x1 sin t) with t = position * inv_freq (Su et al. 2021, arXiv:2104.09864),
// over halves x1 = x[:dim/2], x2 = x[dim/2:dim] or, interleaved, neighbours; what lies beyond dim passes through.
// rotary_angles: t = position * inv_freq, for layers that share them.
#include <algorithm>

#include "cuda/elementwise.cuh"
#include "cuda/ints.cuh"

namespace qkv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kSlice = 1024;  // pairs of a row that a block has cosines for, at most
constexpr size_t kTableBytes = 16 * 1024;

// Of a multiprocessor, which then has 64 KB in flight where each of a thread's pieces is one or two of 16 bytes.
constexpr int kBlocks = 4;
template <int kCount, bool kInterleaved>
constexpr int kUnroll = kInterleaved || kCount == 1 ? 4 : 2;

// ---- cosine and sine -------------------------------------------------------------------------------------------------------

// r = a - q pi / 2 for the nearest integer q, whose last two bits are returned. By integers (Payne and Hanek 1983): of 2 / pi
// only the 96 bits count that neither make whole turns nor vanish. CUDA's own function keeps an array in local memory for it.
QKV_DEVICE int reduce_angle(float a, float* r) {
  constexpr uint32_t kTwoOverPi[] = {0, 0, 0xA2F9836E, 0x4E441529, 0xFC2757D1, 0xF534DDC0, 0xDB629599, 0x3C439041};
  const uint32_t bits = __float_as_uint(a) & 0x7FFFFFFFu;
  if (bits < 0x3F490FDBu || bits >= 0x7F800000u) {  // below pi / 4; no number
    *r = bits < 0x7F800000u ? a : __int_as_float(0x7FFFFFFF);
    return 0;
  }
  const int exponent = static_cast<int>(bits >> 23) - 127;  // -1 ... 127: a = m 2^(exponent - 31)
  const uint32_t m = (bits << 8) | 0x80000000u;
  const int skip = exponent + 31, word = skip / 32, shift = skip % 32;
  uint32_t w[4] = {};
#pragma unroll
  for (int k = 0; k < 5; ++k)
    if (k == word)
#pragma unroll
      for (int j = 0; j < 4; ++j) w[j] = kTwoOverPi[k + j];
  const uint32_t high = __funnelshift_l(w[1], w[0], shift), middle = __funnelshift_l(w[2], w[1], shift),
                 low = __funnelshift_l(w[3], w[2], shift);
  // a 2 / pi mod 4, of which two bits are whole.
  const uint64_t quarters =
      (static_cast<uint64_t>(m * high) << 32) + static_cast<uint64_t>(m) * middle + (static_cast<uint64_t>(m) * low >> 32);
  const auto part = static_cast<int64_t>(quarters << 2);  // -1/2 ... 1/2
  const auto near = static_cast<float>(static_cast<double>(part) * 0x1.921fb54442d18p-64);
  const int q = static_cast<int>((quarters >> 62) + (part < 0));
  *r = a < 0 ? -near : near;
  return (a < 0 ? -q : q) & 3;
}

// The polynomials of csrc/cpu/rotary.cpp: within 1 ulp.
QKV_DEVICE float2 cosine_and_sine(float angle) {
  float r;
  const int quarter = reduce_angle(angle, &r);
  const float z = r * r;
  const float s = r + r * z * (-0x1.555546p-3f + z * (0x1.110778p-7f + z * -0x1.9954p-13f));
  const float c = 1 - 0.5f * z + z * z * (0x1.55554ap-5f + z * (-0x1.6c0c2ap-10f + z * 0x1.99e91p-16f));
  const float first = quarter & 1 ? s : c, second = quarter & 1 ? c : s;
  return make_float2((quarter + 1) & 2 ? -first : first, quarter & 2 ? -second : second);
}

// ---- rows ------------------------------------------------------------------------------------------------------------------

// Some dimensions of the grid of rows.
struct Grid {
  int64_t count;
  int rank;
  int64_t shape[kMaxRank], x[kMaxRank], y[kMaxRank], angles[kMaxRank];
};

struct Problem {
  const char* x;
  char* y;
  const float* angles;
  int64_t x_step, y_step;
  Grid tokens, heads;  // heads share angles
  int n, half, dim;
  float factor;
  int slices, head_chunks;
  int tokens_each, heads_each;  // of a block
  int pitch;                    // units of a plane of the table
};

struct Place {
  int64_t x, y, angles;
};

// Of i, counted from p.
QKV_DEVICE Place place_of(const Grid& g, int64_t i, Place p = {}) {
#pragma unroll 1
  for (int d = g.rank - 1; d >= 0; --d) {
    int64_t at = i;
    if (d > 0) {
      i /= g.shape[d];
      at -= i * g.shape[d];
    }
    p.x += at * g.x[d];
    p.y += at * g.y[d];
    p.angles += at * g.angles[d];
  }
  return p;
}

// kCount: elements that a thread moves at once, 16 bytes or one. The cosines of a piece's pairs, and likewise the sines, are
// units of up to four floats; unit u of all pieces is a plane, so that threads with neighbouring pieces read neighbouring units.
template <int kCount, bool kInterleaved>
struct Table {
  static constexpr int kPairs = kInterleaved && kCount > 1 ? kCount / 2 : kCount;
  static constexpr int kUnit = kPairs < 4 ? kPairs : 4;
  static constexpr int kPlanes = kPairs / kUnit;  // of cosines
  using Unit = std::conditional_t<kUnit == 4, float4, std::conditional_t<kUnit == 2, float2, float>>;

  // So that a warp that writes two planes meets different banks in them.
  static int pitch(int pieces) { return kPlanes == 1 ? pieces : pieces + (12 - pieces % 8) % 8; }
  static int floats(int pitch) { return 2 * kPlanes * kUnit * pitch; }  // of a token

  static QKV_DEVICE void write(float* table, int pitch, int pair, float2 both) {
    const int piece = pair / kPairs, inside = pair % kPairs;
    float* const at = table + (inside / kUnit * pitch + piece) * kUnit + inside % kUnit;
    at[0] = both.x;
    at[kPlanes * pitch * kUnit] = both.y;
  }
  static QKV_DEVICE void read(const float* table, int pitch, int piece, float (&cosine)[kPairs], float (&sine)[kPairs]) {
    const Unit* const at = reinterpret_cast<const Unit*>(table) + piece;
#pragma unroll
    for (int u = 0; u < kPlanes; ++u) {
      const Unit c = at[u * pitch], s = at[(kPlanes + u) * pitch];
      memcpy(cosine + u * kUnit, &c, sizeof(Unit));
      memcpy(sine + u * kUnit, &s, sizeof(Unit));
    }
  }
};

template <class T, int kCount>
using Raw = std::conditional_t<kCount == 1, T, uint4>;
template <class T>
QKV_DEVICE void widen(const T& raw, float (&x)[1]) {
  x[0] = to_float(raw);
}
template <class T>
QKV_DEVICE void widen(const uint4& raw, float (&x)[kLanes<T>]) {
  unpack<T>(raw, x);
}
template <class T, int kCount>
QKV_DEVICE Raw<T, kCount> narrow(const float (&x)[kCount]) {
  if constexpr (kCount == 1)
    return from_float<T>(x[0]);
  else
    return pack<T>(x);
}
template <class T, int kCount>
QKV_DEVICE Raw<T, kCount> fetch(const T* x, int64_t i, int64_t step) {
  if constexpr (kCount == 1)
    return x[i * step];
  else
    return load16_streaming(x + i);
}
template <class T, int kCount>
QKV_DEVICE void put(T* y, int64_t i, int64_t step, const Raw<T, kCount>& raw) {
  if constexpr (kCount == 1)
    y[i * step] = raw;
  else
    store16(y + i, raw);
}

QKV_DEVICE void turn(float& x1, float& x2, float cosine, float sine) {
  const float y1 = __fmaf_rn(-x2, sine, __fmul_rn(x1, cosine));
  x2 = __fmaf_rn(x1, sine, __fmul_rn(x2, cosine));
  x1 = y1;
}

// A block has some tokens, a slice of their pairs, and some of the heads.
template <class T, int kCount, bool kInterleaved>
__global__ void __launch_bounds__(kThreads, kBlocks) rotate(const __grid_constant__ Problem p) {
  begin_dependent();
  using Table = Table<kCount, kInterleaved>;
  constexpr int kPairs = Table::kPairs, kPieces = kUnroll<kCount, kInterleaved>;
  constexpr bool kNeighbours = kInterleaved && kCount > 1;  // both of a pair are in one piece
  __shared__ __align__(16) float table[kTableBytes / sizeof(float)];
  int64_t block = blockIdx.x;
  const auto chunk = static_cast<int>(block % p.head_chunks);
  block /= p.head_chunks;
  const auto slice = static_cast<int>(block % p.slices);
  const int64_t token0 = block / p.slices * p.tokens_each, head0 = static_cast<int64_t>(chunk) * p.heads_each;
  const auto tokens = static_cast<int>(min(p.tokens.count - token0, static_cast<int64_t>(p.tokens_each)));
  const auto heads = static_cast<int>(min(p.heads.count - head0, static_cast<int64_t>(p.heads_each)));
  const int pair0 = slice * static_cast<int>(kSlice), pairs = min(p.half - pair0, static_cast<int>(kSlice));
  const int floats = 2 * Table::kPlanes * Table::kUnit * p.pitch;

  const int turned = pairs / kPairs, items = turned + (slice == 0 ? (p.n - p.dim) / kCount : 0), total = tokens * heads * items;
  // The first element of an item's piece, or of the first of its two; what is not turned comes last.
  const int to_second = kInterleaved ? 1 : p.half;
  const auto place = [&](int item) {
    const int pair = pair0 + item * kPairs;
    return item < turned ? (kInterleaved ? 2 * pair : pair) : p.dim + (item - turned) * kCount;
  };
  for (int first = 0; first < total; first += kPieces * kThreads) {
    Raw<T, kCount> raw[kPieces][kNeighbours ? 1 : 2];
    T* y[kPieces];
#pragma unroll
    for (int u = 0; u < kPieces; ++u) {
      const int i = first + u * kThreads + threadIdx.x;
      if (i >= total) break;
      const int row = i / items, item = i - row * items, token = row / heads;
      const Place of_row = place_of(p.heads, head0 + row - token * heads, place_of(p.tokens, token0 + token));
      const T* const x = reinterpret_cast<const T*>(p.x) + of_row.x;
      y[u] = reinterpret_cast<T*>(p.y) + of_row.y;
      const int at = place(item);
      raw[u][0] = fetch<T, kCount>(x, at, p.x_step);
      if constexpr (!kNeighbours)
        if (item < turned) raw[u][1] = fetch<T, kCount>(x, at + to_second, p.x_step);
    }

    // While the first are on their way.
    if (first == 0) {
      for (int i = threadIdx.x; i < tokens * pairs; i += kThreads) {
        const int token = i / pairs, pair = i - token * pairs;
        const float2 both = cosine_and_sine(p.angles[place_of(p.tokens, token0 + token).angles + pair0 + pair]);
        Table::write(table + token * floats, p.pitch, pair, make_float2(both.x * p.factor, both.y * p.factor));
      }
      __syncthreads();
    }

#pragma unroll
    for (int u = 0; u < kPieces; ++u) {
      const int i = first + u * kThreads + threadIdx.x;
      if (i >= total) break;
      const int row = i / items, item = i - row * items, at = place(item);
      if (item < turned) {
        float cosine[kPairs], sine[kPairs];
        Table::read(table + row / heads * floats, p.pitch, item, cosine, sine);
        float x1[kCount], x2[kCount];
        widen<T>(raw[u][0], x1);
        if constexpr (kNeighbours) {
#pragma unroll
          for (int j = 0; j < kPairs; ++j) turn(x1[2 * j], x1[2 * j + 1], cosine[j], sine[j]);
        } else {
          widen<T>(raw[u][1], x2);
#pragma unroll
          for (int j = 0; j < kPairs; ++j) turn(x1[j], x2[j], cosine[j], sine[j]);
          put<T, kCount>(y[u], at + to_second, p.y_step, narrow<T, kCount>(x2));
        }
        raw[u][0] = narrow<T, kCount>(x1);
      }
      put<T, kCount>(y[u], at, p.y_step, raw[u][0]);
    }
  }
}

template <class T, int kCount, bool kInterleaved>
void launch(Problem p, Stream stream) {
  using Table = Table<kCount, kInterleaved>;
  p.slices = static_cast<int>(std::max<int64_t>(ceil_div<int64_t>(p.half, kSlice), 1));
  const int pieces = std::min(p.half, static_cast<int>(kSlice)) / Table::kPairs;
  p.pitch = std::max(Table::pitch(pieces), 1);
  const int64_t items = std::max<int64_t>(pieces + (p.n - p.dim) / kCount, 1);
  // Of a block: no more at once than its threads can fetch at once, and blocks for all multiprocessors come first.
  const int64_t share = p.tokens.count * p.heads.count * items / device_attribute(cudaDevAttrMultiProcessorCount);
  const int64_t most = std::clamp<int64_t>(share, kThreads, kUnroll<kCount, kInterleaved> * kThreads);
  p.heads_each = static_cast<int>(std::min(p.heads.count, std::max<int64_t>(most / items, 1)));
  p.head_chunks = static_cast<int>(ceil_div<int64_t>(p.heads.count, p.heads_each));
  const auto fit = static_cast<int64_t>(kTableBytes / sizeof(float)) / Table::floats(p.pitch);
  p.tokens_each = static_cast<int>(std::max<int64_t>(std::min({most / (items * p.heads_each), fit, p.tokens.count}), 1));
  const int64_t blocks = ceil_div<int64_t>(p.tokens.count, p.tokens_each) * p.slices * p.head_chunks;
  launch_dependent("rotary", rotate<T, kCount, kInterleaved>, static_cast<unsigned>(blocks), kThreads, 0, stream, p);
}

__global__ void __launch_bounds__(kThreads) angles_of(const __grid_constant__ RotaryAngleArgs a) {
  begin_dependent();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= a.count * a.n) return;
  const int64_t row = i / a.n;
  a.y[i] = __fmul_rn(static_cast<float>(read_int(a.positions, row)), a.frequencies[i - row * a.n]);
}

}  // namespace

void rotary(const RotaryArgs& a, Stream stream) {
  if (a.x.rows == 0 || a.x.n == 0) return;
  Problem p{};
  p.x = a.x.data;
  p.y = a.y.data;
  p.angles = reinterpret_cast<const float*>(a.angles.data);
  p.x_step = a.x.step;
  p.y_step = a.y.step;
  p.n = static_cast<int>(a.x.n);
  p.dim = static_cast<int>(a.dim);
  p.half = p.dim / 2;
  p.factor = a.factor;
  p.tokens.count = p.heads.count = 1;
  for (int d = 0; d < a.x.rank; ++d) {
    Grid& g = a.angles.strides[d] == 0 ? p.heads : p.tokens;
    g.count *= a.x.shape[d];
    g.shape[g.rank] = a.x.shape[d];
    g.x[g.rank] = a.x.strides[d];
    g.y[g.rank] = a.y.strides[d];
    g.angles[g.rank++] = a.angles.strides[d];
  }
  with_dtype(a.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto with = [&](auto interleaved) {
      constexpr bool kInterleaved = decltype(interleaved)::value;
      const bool vectors = in_chunks(a.x) && in_chunks(a.y) && (kInterleaved ? p.dim : p.half) % kLanes<T> == 0;
      if (vectors)
        launch<T, kLanes<T>, kInterleaved>(p, stream);
      else
        launch<T, 1, kInterleaved>(p, stream);
    };
    if (a.interleaved)
      with(std::true_type{});
    else
      with(std::false_type{});
  });
}

void rotary_angles(const RotaryAngleArgs& a, Stream stream) {
  if (a.count == 0 || a.n == 0) return;
  launch_dependent("rotary", angles_of, static_cast<unsigned>(ceil_div<int64_t>(a.count * a.n, kThreads)), kThreads, 0, stream,
                   a);
}

}  // namespace qkv::cuda

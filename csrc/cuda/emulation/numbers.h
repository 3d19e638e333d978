// Arithmetic as PTX defines it, where C++ says something else or nothing: 16-bit floats, directed rounding, saturation, NaN.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <limits>
#include <type_traits>

namespace qkv::emulation {

template <class To, class From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

enum class Round { nearest, zero, down, up };

// ---- float16 and bfloat16, as their bits

inline float f16_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, rest = h & 0x7FFF;
  if (rest >= 0x7C00) return bits_as<float>(sign | 0x7F800000 | (rest & 0x3FF) << 13);
  if (rest < 0x400) return bits_as<float>(sign | bits_as<uint32_t>(static_cast<float>(rest) * 0x1p-24f));
  return bits_as<float>(sign | ((rest << 13) + (112u << 23)));
}

inline uint16_t float_to_f16(float x) {
  uint32_t u = bits_as<uint32_t>(x);
  const uint32_t sign = u >> 16 & 0x8000;
  u &= 0x7FFFFFFF;
  if (u > 0x7F800000) return 0x7FFF;
  if (u >= 0x477FF000) return static_cast<uint16_t>(sign | 0x7C00);
  if (u < 0x38800000)  // subnormal: 0.5 has the same last place
    return static_cast<uint16_t>(sign | (bits_as<uint32_t>(bits_as<float>(u) + 0.5f) - 0x3F000000));
  return static_cast<uint16_t>(sign | (u + 0xFFF + (u >> 13 & 1) - (112u << 23)) >> 13);
}

inline float bf16_to_float(uint16_t h) { return bits_as<float>(static_cast<uint32_t>(h) << 16); }

inline uint16_t float_to_bf16(float x) {
  const uint32_t u = bits_as<uint32_t>(x);
  if ((u & 0x7FFFFFFF) > 0x7F800000) return 0x7FFF;
  return static_cast<uint16_t>((u + 0x7FFF + (u >> 16 & 1)) >> 16);
}

// x rounded to double such that rounding it once more, to 24 bits or fewer, gives what rounding the exact a * b + c would.
inline double fma_to_odd(double a, double b, double c) {  // a * b must be exact
  const double product = a * b, sum = product + c;
  if (!isfinite(sum)) return sum;
  const double back = sum - product, error = (product - (sum - back)) + (c - back);
  if (error == 0 || (bits_as<uint64_t>(sum) & 1)) return sum;
  // An even last place and something lost: the neighbour on the exact value's side is odd.
  if (sum == 0) return error;
  const uint64_t u = bits_as<uint64_t>(sum);
  return bits_as<double>((error > 0) == (sum > 0) ? u + 1 : u - 1);
}

inline float double_to_float(double x, Round round) {
  const float nearest = static_cast<float>(x);
  if (round == Round::nearest || isnan(nearest) || nearest == x || isinf(x)) return nearest;
  const bool above = nearest > x;
  const bool want_below = round == Round::down || (round == Round::zero && x > 0);
  if (above && want_below) return nextafterf(nearest, -INFINITY);
  if (!above && !want_below) return nextafterf(nearest, INFINITY);
  return nearest;
}

struct F16 {
  static float widen(uint16_t h) { return f16_to_float(h); }
  static uint16_t round(float x) { return float_to_f16(x); }
  static constexpr int kMantissaBits = 10;
};
struct BF16 {
  static float widen(uint16_t h) { return bf16_to_float(h); }
  static uint16_t round(float x) { return float_to_bf16(x); }
  static constexpr int kMantissaBits = 7;
};

// A double that holds the exact result, or is rounded to odd, to 16 bits.
template <class Format>
uint16_t round_double(double x) {
  float f = static_cast<float>(x);
  if (!isnan(f) && !isinf(f) && f != x) {  // to odd once more
    if (!(bits_as<uint32_t>(f) & 1))
      f = (fabs(static_cast<double>(f)) < fabs(x)) == true ? bits_as<float>(bits_as<uint32_t>(f) + 1)
                                                           : bits_as<float>(bits_as<uint32_t>(f) - 1);
  } else if (isinf(f) && !isinf(x)) {
    f = copysignf(std::numeric_limits<float>::max(), f);
  }
  return Format::round(f);
}

template <class Format>
uint16_t round_toward(float x, Round round) {
  const uint16_t nearest = Format::round(x);
  const float n = Format::widen(nearest);
  if (round == Round::nearest || isnan(x) || n == x) return nearest;
  const bool want_smaller = round == Round::zero || (round == Round::down) == (x > 0);  // in magnitude
  const bool is_smaller = fabsf(n) < fabsf(x);
  if (want_smaller && !is_smaller) return static_cast<uint16_t>(nearest - 1);
  if (!want_smaller && is_smaller) return static_cast<uint16_t>(nearest + 1);
  return nearest;
}

template <class Format>
uint16_t fma16(uint16_t a, uint16_t b, uint16_t c) {
  return round_double<Format>(fma_to_odd(Format::widen(a), Format::widen(b), Format::widen(c)));
}
template <class Format>
uint16_t add16(uint16_t a, uint16_t b) {
  return round_double<Format>(fma_to_odd(Format::widen(a), 1.0, Format::widen(b)));
}
template <class Format>
uint16_t sub16(uint16_t a, uint16_t b) {
  return add16<Format>(a, b ^ 0x8000);
}
template <class Format>
uint16_t mul16(uint16_t a, uint16_t b) {
  return Format::round(Format::widen(a) *
                       Format::widen(b));  // 22 bits: exact in float, but for what underflows, which rounds to 0 either way
}

// ---- minimum, maximum, saturation

template <class T>
T minimum(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) {
    if (a != a) return b != b ? std::numeric_limits<T>::quiet_NaN() : b;
    if (b != b) return a;
    if (a == b) return signbit(a) ? a : b;
  }
  return a < b ? a : b;
}
template <class T>
T maximum(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) {
    if (a != a) return b != b ? std::numeric_limits<T>::quiet_NaN() : b;
    if (b != b) return a;
    if (a == b) return signbit(a) ? b : a;
  }
  return a > b ? a : b;
}
// .NaN: a NaN wins.
template <class T>
T minimum_nan(T a, T b) {
  return a != a || b != b ? std::numeric_limits<T>::quiet_NaN() : minimum(a, b);
}
template <class T>
T maximum_nan(T a, T b) {
  return a != a || b != b ? std::numeric_limits<T>::quiet_NaN() : maximum(a, b);
}
template <class T>
T saturate(T x) {
  return !(x > 0) ? T(0) : x > 1 ? T(1) : x;
}
template <class T>
T relu(T x) {
  return x != x ? x : x > 0 ? x : T(0);
}
inline float flush(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0.f, x) : x; }

// ---- conversions

template <class T>
T to_integral(T x, Round round) {
  switch (round) {
    case Round::nearest:
      return nearbyint(x);
    case Round::zero:
      return trunc(x);
    case Round::down:
      return floor(x);
    default:
      return ceil(x);
  }
}
inline float to_integral(float x, Round round) {
  switch (round) {
    case Round::nearest:
      return nearbyintf(x);
    case Round::zero:
      return truncf(x);
    case Round::down:
      return floorf(x);
    default:
      return ceilf(x);
  }
}

// Clamped to the type; NaN is 0, and of 64 bits the smallest signed value.
template <class Int>
Int float_to_int(double x, Round round) {
  using Limits = std::numeric_limits<Int>;
  if (isnan(x)) return sizeof(Int) == 8 ? static_cast<Int>(uint64_t{1} << 63) : Int(0);
  x = to_integral(x, round);
  if (x <= static_cast<double>(Limits::min())) return Limits::min();
  if (x >= static_cast<double>(Limits::max())) return Limits::max();
  return static_cast<Int>(x);
}

template <class Int>
float int_to_float(Int x, Round round) {
  const float nearest = static_cast<float>(x);
  if (round == Round::nearest) return nearest;
  const long double exact = static_cast<long double>(x), n = nearest;  // 64 bits of mantissa
  const bool want_below = round == Round::down || (round == Round::zero && exact > 0);
  if (n > exact && want_below) return nextafterf(nearest, -INFINITY);
  if (n < exact && !want_below) return nextafterf(nearest, INFINITY);
  return nearest;
}

template <class To, class From>
To clamp_int(From x) {
  using Wide = std::conditional_t<std::is_signed_v<From>, int64_t, uint64_t>;
  const Wide w = x;
  if constexpr (std::is_signed_v<From>) {
    if (w < 0 && !std::is_signed_v<To>) return To(0);
    if (std::is_signed_v<To> && w < static_cast<int64_t>(std::numeric_limits<To>::min())) return std::numeric_limits<To>::min();
  }
  const bool positive = !std::is_signed_v<From> || w >= 0;
  if (positive && static_cast<uint64_t>(w) > static_cast<uint64_t>(std::numeric_limits<To>::max()))
    return std::numeric_limits<To>::max();
  return static_cast<To>(x);
}

}  // namespace qkv::emulation

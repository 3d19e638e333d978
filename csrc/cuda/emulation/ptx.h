// What generated code includes: PTX's instructions as functions, and the moves between registers of different types.
//
// A register of the PTX is a local variable: float and double for .f32 and .f64, bool for .pred, and unsigned integers for the
// rest.
#pragma once
#include <stdint.h>
#include <string.h>

#include <type_traits>

#include "cuda/emulation/async.h"
#include "cuda/emulation/block.h"
#include "cuda/emulation/memory.h"
#include "cuda/emulation/numbers.h"
#include "cuda/emulation/registry.h"
#include "cuda/emulation/tensor_core.h"
#include "cuda/emulation/warp.h"

namespace qkv::emulation {

// A register, read as type T: its low bits, zeros above where it is narrower.
template <class T, class From>
inline T as(From from) {
  if constexpr (std::is_same_v<T, From>) {
    return from;
  } else if constexpr (std::is_same_v<T, bool> || std::is_same_v<From, bool>) {
    return static_cast<T>(from);
  } else if constexpr (std::is_integral_v<T> && std::is_integral_v<From>) {
    return static_cast<T>(static_cast<std::make_unsigned_t<From>>(from));
  } else {
    T to{};
    memcpy(&to, &from, sizeof to < sizeof from ? sizeof to : sizeof from);
    return to;
  }
}

inline uint32_t bits_of_float(float x) { return bits_as<uint32_t>(x); }
inline float float_of_bits(uint32_t x) { return bits_as<float>(x); }

// A result into a register, which may be wider: a signed one is extended by its sign.
template <class To, class From>
inline void set(To& to, From from) {
  if constexpr (std::is_integral_v<From> && std::is_integral_v<To> && !std::is_same_v<To, bool> && !std::is_same_v<From, bool>)
    to = static_cast<To>(from);
  else
    to = as<To>(from);
}

// ---- integers

template <class T>
inline T shift_left(T a, uint32_t by) {
  return by >= sizeof(T) * 8 ? T(0) : static_cast<T>(static_cast<std::make_unsigned_t<T>>(a) << by);
}
template <class T>
inline T shift_right(T a, uint32_t by) {
  if (by >= sizeof(T) * 8) return std::is_signed_v<T> && a < 0 ? T(-1) : T(0);
  return static_cast<T>(a >> by);
}
template <class T>
inline T divide(T a, T b) {
  if (b == 0) return static_cast<T>(-1);  // "unspecified, machine specific"
  if (std::is_signed_v<T> && b == static_cast<T>(-1)) return static_cast<T>(0 - static_cast<std::make_unsigned_t<T>>(a));
  return static_cast<T>(a / b);
}
template <class T>
inline T remainder_of(T a, T b) {
  if (b == 0) return a;
  if (std::is_signed_v<T> && b == static_cast<T>(-1)) return 0;
  return static_cast<T>(a % b);
}
template <class T>
inline T multiply_high(T a, T b) {
  if constexpr (sizeof(T) == 8) {
    using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
    return static_cast<T>((static_cast<Wide>(a) * static_cast<Wide>(b)) >> 64);
  } else {
    using Wide = std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>;
    return static_cast<T>((static_cast<Wide>(a) * static_cast<Wide>(b)) >> (sizeof(T) * 8));
  }
}
template <class T>
inline T saturating_add(T a, T b) {
  return clamp_int<T>(static_cast<int64_t>(a) + b);
}
template <class T>
inline T saturating_sub(T a, T b) {
  return clamp_int<T>(static_cast<int64_t>(a) - b);
}
template <class T>
inline T with_carry(T a, T b, bool in, bool& out) {  // of unsigned types
  const T sum = static_cast<T>(a + b), all = static_cast<T>(sum + in);
  out = sum < a || all < sum;
  return all;
}
template <class T>
inline T with_borrow(T a, T b, bool in, bool& out) {
  const T difference = static_cast<T>(a - b), all = static_cast<T>(difference - in);
  out = a < b || difference < static_cast<T>(in);
  return all;
}
template <class T>
inline T bit_field(T a, uint32_t position, uint32_t length) {
  constexpr uint32_t bits = sizeof(T) * 8;
  position &= 0xFF, length &= 0xFF;
  using U = std::make_unsigned_t<T>;
  if (length == 0) return 0;
  const U u = position >= bits ? 0 : static_cast<U>(a) >> position;
  U field = length >= bits ? u : u & ((U(1) << length) - 1);
  if (std::is_signed_v<T>) {
    const uint32_t top = position + length - 1 < bits - 1 ? position + length - 1 : bits - 1;
    const bool sign = static_cast<U>(a) >> top & 1;
    if (sign && length < bits) field |= ~((U(1) << length) - 1);
    if (sign && position >= bits)
      field = ~U(0);
    else if (sign && position && position + length > bits)
      field |= ~U(0) << (bits - position);
  }
  return static_cast<T>(field);
}
template <class T>
inline T insert_field(T a, T into, uint32_t position, uint32_t length) {
  constexpr uint32_t bits = sizeof(T) * 8;
  position &= 0xFF, length &= 0xFF;
  if (position >= bits) return into;
  const T mask = static_cast<T>((length >= bits ? ~T(0) : (T(1) << length) - 1) << position);
  return static_cast<T>((into & ~mask) | ((a << position) & mask));
}
inline uint32_t logic3(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
  uint32_t r = 0;
  if (table & 1) r |= ~a & ~b & ~c;
  if (table & 2) r |= ~a & ~b & c;
  if (table & 4) r |= ~a & b & ~c;
  if (table & 8) r |= ~a & b & c;
  if (table & 16) r |= a & ~b & ~c;
  if (table & 32) r |= a & ~b & c;
  if (table & 64) r |= a & b & ~c;
  if (table & 128) r |= a & b & c;
  return r;
}
inline uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t r = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t s = selector >> (4 * i) & 15;
    uint32_t byte = static_cast<uint32_t>(bytes >> (8 * (s & 7))) & 0xFF;
    if (s & 8) byte = byte & 0x80 ? 0xFF : 0;
    r |= byte << (8 * i);
  }
  return r;
}
inline uint32_t funnel_left(uint32_t low, uint32_t high, uint32_t by, bool clamp) {
  by = clamp ? (by > 32 ? 32 : by) : by & 31;
  const uint64_t both = static_cast<uint64_t>(high) << 32 | low;
  return static_cast<uint32_t>((both << by) >> 32);
}
inline uint32_t funnel_right(uint32_t low, uint32_t high, uint32_t by, bool clamp) {
  by = clamp ? (by > 32 ? 32 : by) : by & 31;
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> by);
}
template <class T>
inline uint32_t leading_zeros(T a) {
  return a == 0 ? sizeof(T) * 8 : sizeof(T) == 8 ? __builtin_clzll(a) : __builtin_clz(static_cast<uint32_t>(a));
}
template <class T>
inline T reverse_bits(T a) {
  T r = 0;
  for (unsigned i = 0; i < sizeof(T) * 8; ++i) r |= (a >> i & 1) << (sizeof(T) * 8 - 1 - i);
  return r;
}
template <class T>
inline uint32_t find_top_bit(T a, bool as_shift) {
  using U = std::make_unsigned_t<T>;
  const U u = std::is_signed_v<T> && a < 0 ? static_cast<U>(~a) : static_cast<U>(a);
  if (u == 0) return 0xFFFFFFFF;
  const uint32_t zeros = leading_zeros(u);
  return as_shift ? zeros : sizeof(T) * 8 - 1 - zeros;
}
template <class A, class B>
inline uint32_t dot4(uint32_t a, uint32_t b, uint32_t c) {
  for (int i = 0; i < 4; ++i)
    c += static_cast<uint32_t>(static_cast<int32_t>(static_cast<A>(a >> (8 * i))) *
                               static_cast<int32_t>(static_cast<B>(b >> (8 * i))));
  return c;
}
template <class A, class B>
inline uint32_t dot2(uint32_t a, uint32_t b, uint32_t c) {  // b: two bytes
  for (int i = 0; i < 2; ++i)
    c += static_cast<uint32_t>(static_cast<int32_t>(static_cast<A>(a >> (16 * i))) *
                               static_cast<int32_t>(static_cast<B>(b >> (8 * i))));
  return c;
}

// ---- pairs of 16 bits

template <class F>
inline uint32_t each_half(uint32_t a, F&& f) {
  return f(static_cast<uint16_t>(a)) | static_cast<uint32_t>(f(static_cast<uint16_t>(a >> 16))) << 16;
}
template <class F>
inline uint32_t each_half(uint32_t a, uint32_t b, F&& f) {
  return f(static_cast<uint16_t>(a), static_cast<uint16_t>(b)) |
         static_cast<uint32_t>(f(static_cast<uint16_t>(a >> 16), static_cast<uint16_t>(b >> 16))) << 16;
}
template <class F>
inline uint32_t each_half(uint32_t a, uint32_t b, uint32_t c, F&& f) {
  return f(static_cast<uint16_t>(a), static_cast<uint16_t>(b), static_cast<uint16_t>(c)) |
         static_cast<uint32_t>(f(static_cast<uint16_t>(a >> 16), static_cast<uint16_t>(b >> 16), static_cast<uint16_t>(c >> 16)))
             << 16;
}

// ---- registers from and to vectors

template <class... T>
inline void unpack(uint64_t from, T&... to) {
  constexpr unsigned bits = 8 * sizeof(std::common_type_t<T...>);
  unsigned at = 0;
  ((set(to, as<T>(static_cast<std::conditional_t<bits == 16, uint16_t, std::conditional_t<bits == 8, uint8_t, uint32_t>>>(from >>
                                                                                                                          at))),
    at += bits),
   ...);
}
template <class T>
inline uint64_t zero_extended(T x) {
  return as<uint64_t>(x);
}
template <class... T>
inline uint64_t pack(T... from) {
  uint64_t all = 0;
  unsigned at = 0;
  ((all |= zero_extended(from) << at, at += 8 * sizeof(T)), ...);
  return all;
}

// ---- atomics

template <class T, class F>
inline T atomic_update(int site, uint64_t address, bool acquires, bool releases, F&& f) {
  unsigned char* p = synchronising_bytes(site, address, sizeof(T), true, true, acquires, releases, true);
  T old;
  memcpy(&old, p, sizeof old);
  const T fresh = f(old);
  memcpy(p, &fresh, sizeof fresh);
  return old;
}
template <class T>
inline T atomic_exchange(int site, uint64_t address, bool acquires, bool releases, T value) {
  unsigned char* p = exchanging_bytes(site, address, sizeof(T), acquires, releases);
  T old;
  memcpy(&old, p, sizeof old);
  memcpy(p, &value, sizeof value);
  return old;
}
template <class T>
inline T increment_wrapped(T old, T limit) {
  return old >= limit ? 0 : old + 1;
}
template <class T>
inline T decrement_wrapped(T old, T limit) {
  return old == 0 || old > limit ? limit : old - 1;
}

// ---- special registers

inline uint64_t clock_now() {
  static uint64_t ticks = 0;
  return ticks += 32;
}

}  // namespace qkv::emulation

#pragma once

#include <cute/numeric/numeric_types.hpp>

// Every line of inline PTX in the project.

namespace softmax::ptx {

// 2^x with a relative error of at most 2^-22.5; subnormal results flush to zero.
CUTE_DEVICE float ex2(float x)
{
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// log2(x) with an absolute error of at most 2^-22 around 1, relative elsewhere; of subnormal x too.
CUTE_DEVICE float lg2(float x)
{
  float y;
  asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 / x with a relative error of at most 2^-23, for normal x.
CUTE_DEVICE float rcp(float x)
{
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two 16-bit elements of one register as f32, both exact.
template <class Element>
CUTE_DEVICE float2 unpack(uint32_t pair);

template <>
CUTE_DEVICE float2 unpack<cutlass::half_t>(uint32_t pair)
{
  float2 f;
  asm("{.reg .f16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high;}"
      : "=f"(f.x), "=f"(f.y) : "r"(pair));
  return f;
}

template <>
CUTE_DEVICE float2 unpack<cutlass::bfloat16_t>(uint32_t pair)
{
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
}

// The reverse, rounded to nearest even.
template <class Element>
CUTE_DEVICE uint32_t pack(float low, float high);

template <>
CUTE_DEVICE uint32_t pack<cutlass::half_t>(float low, float high)
{
  __half2 const pair = __floats2half2_rn(low, high);
  return reinterpret_cast<uint32_t const&>(pair);
}

template <>
CUTE_DEVICE uint32_t pack<cutlass::bfloat16_t>(float low, float high)
{
  __nv_bfloat162 const pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<uint32_t const&>(pair);
}

// a ^ b, hidden from the optimiser: it would fold the xor into the comparison of every field of the register, which then
// takes two instructions instead of one.
CUTE_DEVICE uint32_t opaque_xor(uint32_t a, uint32_t b)
{
  uint32_t c;
  asm("xor.b32 %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b));
  return c;
}

}  // namespace softmax::ptx

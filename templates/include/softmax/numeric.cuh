#pragma once

#include <cuda/std/limits>
#include <cute/tensor_impl.hpp>

#include <softmax/ptx.cuh>

// What the element type decides: the accumulator, and how exp(z - m) is computed in it.
//
// A maximum of -inf means that nothing is visible: it is replaced by 0, so that exp(-inf - 0) = 0 and the row's sum is 0.
// A visible +inf or NaN makes exp NaN (inf - inf, NaN - m), the sum NaN, and with it the whole row.

namespace softmax {

template <class Accumulator>
CUTE_DEVICE constexpr Accumulator negative_infinity()
{
  return -cuda::std::numeric_limits<Accumulator>::infinity();
}

// 16-bit elements: f32 accumulation, one ex2 per element.
//
//   exp(z - m) = 2^(z c - m c),  c = log2(e)
//
// ex2 flushes subnormal results, which bf16 still tells apart: everything is computed 2^8 times as large, and as the sum is
// too, the factor cancels in the quotient. A larger factor would make unit_rebase subnormal for a warp whose scores are all far
// below the row's maximum.
//
// Above |m| = 2^24 the rounding of m c would be a factor of more than 2, in the end an infinite one. There two different
// 16-bit scores are at least 2^13 apart, exp(z - m) is 0 or 1, and c = 1/2 gives the same without rounding: a row of bf16
// finfo.min stays uniform.
template <class Element>
struct Numeric
{
  static_assert(sizeof(Element) == 2, "the general case is for half_t and bfloat16_t");
  using Accumulator = float;
  static constexpr bool LongExp = false;

  // unit * exp(z - m), times a factor near 1 from the rounding of m c, which all exponentials relative to one m share.
  struct Exp
  {
    static constexpr float unit = 0x1p8f;

    float m;
    float c;
    float shift;

    CUTE_DEVICE explicit Exp(float max)
    {
      m     = max == negative_infinity<float>() ? 0.0f : max;
      c     = fabsf(m) > 0x1p24f ? 0.5f : 0x1.715476p+0f;
      shift = fmaf(-m, c, 8.0f);
    }

    CUTE_DEVICE float operator()(float z) const { return ptx::ex2(fmaf(z, c, shift)); }

    // exp(z - m), without that factor.
    CUTE_DEVICE float exact(float z) const { return ptx::ex2((z - m) * c); }

    // Turns sums of exponentials relative to `max` into such relative to m, their factor included.
    CUTE_DEVICE float rebase(float max) const { return ptx::ex2(shift - fmaf(-max, c, 8.0f)); }
    CUTE_DEVICE float unit_rebase(float max) const { return ptx::ex2(shift - fmaf(-max, c, 8.0f) + 8.0f); }
  };

  CUTE_DEVICE static float reciprocal(float sum) { return ptx::rcp(sum); }
};

// For scores with a bias or slope: close to a large maximum any other score can occur, so z - m is computed first; it is exact
// there.
template <class Element>
struct NumericOfSums : Numeric<Element>
{
  struct Exp
  {
    static constexpr float unit = 0x1p8f;

    float m;

    CUTE_DEVICE explicit Exp(float max) : m(max == negative_infinity<float>() ? 0.0f : max) {}
    CUTE_DEVICE float operator()(float z) const { return ptx::ex2(fmaf(z - m, 0x1.715476p+0f, 8.0f)); }
    CUTE_DEVICE float exact(float z) const { return ptx::ex2((z - m) * 0x1.715476p+0f); }
    CUTE_DEVICE float rebase(float max) const { return exact(max); }
    CUTE_DEVICE float unit_rebase(float max) const { return (*this)(max); }
  };
};

template <>
struct Numeric<float>
{
  using Accumulator = float;
  static constexpr bool LongExp = false;

  struct Exp
  {
    static constexpr float unit = 1.0f;

    float m;

    CUTE_DEVICE explicit Exp(float max) : m(max == negative_infinity<float>() ? 0.0f : max) {}
    CUTE_DEVICE float operator()(float z) const { return expf(z - m); }
    CUTE_DEVICE float exact(float z) const { return (*this)(z); }
    CUTE_DEVICE float rebase(float max) const { return (*this)(max); }
    CUTE_DEVICE float unit_rebase(float max) const { return (*this)(max); }
  };

  // One Newton step: within one unit in the last place for the sums of a softmax, which are at least 1.
  CUTE_DEVICE static float reciprocal(float sum)
  {
    float const r = ptx::rcp(sum);
    return fmaf(r, fmaf(-sum, r, 1.0f), r);
  }
};

template <>
struct NumericOfSums<float> : Numeric<float>
{};

// The functions of f64 are long, up to 3 KB with what ptxas pads: values computed once per row call a shared copy. It serves where
// f32 is content with an approximation, too.
__noinline__ __device__ double shared_exp(double z) { return exp(z); }
__noinline__ __device__ double shared_log(double y) { return log(y); }
__noinline__ __device__ double shared_reciprocal(double a) { return 1 / a; }

template <>
struct Numeric<double>
{
  using Accumulator = double;

  // Whether one exp is to serve all elements. sm_103 and sm_120 compute in double at 1/64 of the rate of float, and ptxas puts
  // four NOPs after each such instruction: exp is 3 KB of code there, and to move registers costs nothing beside it.
  static constexpr bool LongExp = __CUDA_ARCH__ > 1000;

  struct Exp
  {
    static constexpr double unit = 1.0;

    double m;

    CUTE_DEVICE explicit Exp(double max) : m(max == negative_infinity<double>() ? 0.0 : max) {}
    CUTE_DEVICE double operator()(double z) const { return LongExp ? shared_exp(z - m) : exp(z - m); }
    CUTE_DEVICE double exact(double z) const { return shared_exp(z - m); }
    CUTE_DEVICE double rebase(double max) const { return exact(max); }
    CUTE_DEVICE double unit_rebase(double max) const { return exact(max); }
  };

  CUTE_DEVICE static double reciprocal(double sum) { return 1 / sum; }
};

template <>
struct NumericOfSums<double> : Numeric<double>
{
  CUTE_DEVICE static double reciprocal(double sum) { return shared_reciprocal(sum); }
};

// A vector of elements as accumulators. 16-bit elements are taken two to a register, which saves the byte shuffles.
template <class Elements, class Accumulators>
CUTE_DEVICE void widen(Elements const& rX /* (V) */, Accumulators&& rZ /* (V) */)
{
  using namespace cute;
  using Element = typename Elements::value_type;
  constexpr int Vec = decltype(size(rX))::value;
  if constexpr (sizeof(Element) == 2 && Vec % 2 == 0) {
    Tensor rX2 = recast<uint32_t>(rX);  // (V/2)
    CUTE_UNROLL
    for (int i = 0; i < Vec / 2; ++i) {
      float2 const pair = ptx::unpack<Element>(rX2(i));
      rZ(2 * i)         = pair.x;
      rZ(2 * i + 1)     = pair.y;
    }
  } else {
    CUTE_UNROLL
    for (int i = 0; i < Vec; ++i) { rZ(i) = typename Numeric<Element>::Accumulator(rX(i)); }
  }
}

// Accumulators rounded to the nearest element, ties to even.
template <class Accumulators, class Elements>
CUTE_DEVICE void narrow(Accumulators const& rZ /* (V) */, Elements&& rY /* (V) */)
{
  using namespace cute;
  using Element = typename remove_cvref_t<Elements>::value_type;
  constexpr int Vec = decltype(size(rY))::value;
  if constexpr (sizeof(Element) == 2 && Vec % 2 == 0) {
    Tensor rY2 = recast<uint32_t>(rY);  // (V/2)
    CUTE_UNROLL
    for (int i = 0; i < Vec / 2; ++i) { rY2(i) = ptx::pack<Element>(rZ(2 * i), rZ(2 * i + 1)); }
  } else {
    CUTE_UNROLL
    for (int i = 0; i < Vec; ++i) { rY(i) = Element(rZ(i)); }
  }
}

// exp(z) with a relative error of |z| 2^-24 in f32, for what is compared with 1 or added to it.
CUTE_DEVICE float approximate_exp(float z) { return ptx::ex2(z * 0x1.715476p+0f); }
CUTE_DEVICE double approximate_exp(double z) { return shared_exp(z); }

// log(y) with an absolute error of 2^-22 around 1, relative elsewhere, in f32.
CUTE_DEVICE float approximate_log(float y) { return ptx::lg2(y) * 0x1.62e43p-1f; }
CUTE_DEVICE double approximate_log(double y) { return shared_log(y); }

CUTE_DEVICE float approximate_reciprocal(float a) { return ptx::rcp(a); }
CUTE_DEVICE double approximate_reciprocal(double a) { return shared_reciprocal(a); }

CUTE_DEVICE float logarithm(float y) { return logf(y); }
CUTE_DEVICE double logarithm(double y) { return shared_log(y); }

// a + b, which ptxas may not fuse with a product that is one of them.
CUTE_DEVICE float rounded_sum(float a, float b) { return __fadd_rn(a, b); }
CUTE_DEVICE double rounded_sum(double a, double b) { return __dadd_rn(a, b); }

// The larger of a and b, where a is not NaN; a if b is. The sum of a row keeps its NaN.
CUTE_DEVICE float max_number(float a, float b) { return fmaxf(a, b); }
CUTE_DEVICE double max_number(double a, double b) { return b > a ? b : a; }

}  // namespace softmax

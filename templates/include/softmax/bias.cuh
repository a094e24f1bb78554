#pragma once

#include <cute/tensor.hpp>

#include <softmax/rows.cuh>
#include <softmax/scores.cuh>

namespace softmax {

// Numbers in memory that are added to the scores, broadcast by strides of 0: elements, or a wider type where a launch may say so.
// -inf hides.
template <class Element, class Wide>
struct Bias
{
  using Accumulator = typename Numeric<Element>::Accumulator;

  struct Params
  {
    void const* bias;
    int32_t wide;  // whether it is of the wider type
    RowStrides strides;
  };

  CUTE_DEVICE static bool is_present(Params const& p) { return p.bias != nullptr; }

  static constexpr bool Narrows = false;
  static constexpr bool Begins  = false;

  // A vector as it lies in memory; elements take the front.
  template <int Vec>
  struct Fragment
  {
    cute::array_aligned<Wide, Vec> raw;

    template <class Value>
    CUTE_DEVICE auto of()
    {
      return cute::make_tensor(reinterpret_cast<Value*>(raw.data()), cute::Shape<cute::Int<Vec>>{});  // (V)
    }
    template <class Value>
    CUTE_DEVICE auto of() const
    {
      return cute::make_tensor(reinterpret_cast<Value const*>(raw.data()), cute::Shape<cute::Int<Vec>>{});  // (V)
    }
  };

  char const* row;
  bool wide;

  CUTE_DEVICE Bias(Params const& p, Rows const& rows, RowIndex const& index)
    : row(static_cast<char const*>(p.bias)), wide(cute::is_same_v<Element, Wide> || p.wide != 0)
  {
    row += index.offset(p.strides, rows.rank) * bytes();
  }

  CUTE_DEVICE Bias from(int column) const
  {
    Bias bias = *this;
    bias.row += int64_t(column) * bytes();
    return bias;
  }

  CUTE_DEVICE static cute::_0 begin() { return {}; }
  CUTE_DEVICE int end(int end) const { return end; }

  template <class Span, int Vec>
  CUTE_DEVICE void load(Span const& span, Fragment<Vec>& fragment) const
  {
    if (wide) {
      span.load(reinterpret_cast<Wide const*>(row), fragment.template of<Wide>());
    } else {
      span.load(reinterpret_cast<Element const*>(row), fragment.template of<Element>());
    }
  }

  template <class Span, int Vec, class ScoreVector>
  CUTE_DEVICE void apply(Span const&, Fragment<Vec> const& fragment, ScoreVector&& rZ /* (V) */) const
  {
    cute::Tensor rB = cute::make_tensor<Accumulator>(cute::Shape<cute::Int<Vec>>{});  // (V)
    if (wide) {
      widen(fragment.template of<Wide>(), rB);
    } else {
      widen(fragment.template of<Element>(), rB);
    }
    CUTE_UNROLL
    for (int v = 0; v < Vec; ++v) {
      rZ(v) = rB(v) == negative_infinity<Accumulator>() ? rB(v) : rZ(v) + rB(v);
    }
  }

private:
  CUTE_DEVICE int64_t bytes() const { return wide ? sizeof(Wide) : sizeof(Element); }
};

}  // namespace softmax

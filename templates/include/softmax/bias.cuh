#pragma once

#include <cute/tensor_impl.hpp>

#include <softmax/rows.cuh>
#include <softmax/scores.cuh>

namespace softmax {

// Numbers in memory that are added to the scores, broadcast by strides of 0: of type Element, or Wide if the launch sets `wide`.
// -inf hides.
template <class Element, class Wide>
struct Bias : InertFeature
{
  using Accumulator = typename Numeric<Element>::Accumulator;

  struct Params
  {
    void const* bias;
    int32_t wide;  // whether it is of the wider type
    RowStrides strides;
  };

  CUTE_DEVICE static bool is_present(Params const& p) { return p.bias != nullptr; }

  // A vector as it lies in memory; narrow elements use the first half.
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

  // A vector of Wide takes more words than one of Element. The same instructions load either: for Element, those of the words
  // beyond its own are predicated off.
  template <class Row, class Seen, class Registers>
  CUTE_DEVICE void load(Whole, Row const& scores, Seen seen, Registers fragment, bool wanted = true) const
  {
    bool const aligned = wide ? scores.is_aligned(as<Wide>()) : scores.is_aligned(as<Element>());
    for_each_part(scores, kEveryColumn, [&](auto part) {
      using Word             = WordOf<Element, part.Width>;
      auto const span        = seen(part);
      bool const loads       = wanted && (aligned || part.Width == 1) && span.column < span.end;
      auto const* const from = reinterpret_cast<Word const*>(row + span.column * bytes());
      auto* const words      = reinterpret_cast<Word*>(fragment(part).raw.data());
      CUTE_UNROLL
      for (int i = 0; i < int(part.Width * sizeof(Wide) / sizeof(Word)); ++i) {
        bool const of_elements = i * sizeof(Word) < part.Width * sizeof(Element);
        ptx::load_if(loads && (of_elements || wide), from + i, words[i]);
      }
    });
  }

  template <class Row, class Seen, class Registers>
  CUTE_DEVICE void load(ByElement how, Row const& scores, Seen seen, Registers fragment, bool wanted = true) const
  {
    load_parts(how, scores, seen, as<Wide>(), [&](auto part) { return fragment(part).template of<Wide>(); }, wanted && wide);
    if constexpr (!cute::is_same_v<Element, Wide>) {
      load_parts(how, scores, seen, as<Element>(), [&](auto part) { return fragment(part).template of<Element>(); }, wanted && !wide);
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
  template <class Value>
  CUTE_DEVICE Value const* as() const
  {
    return reinterpret_cast<Value const*>(row);
  }

  CUTE_DEVICE int64_t bytes() const { return wide ? sizeof(Wide) : sizeof(Element); }
};

}  // namespace softmax

#pragma once

#include <cute/algorithm/clear.hpp>
#include <cute/tensor_impl.hpp>

#include <softmax/numeric.cuh>
#include <softmax/row_io.cuh>

// Scores of a row: z = scale * x, changed by each feature in turn; -inf where a feature hides the column.
//
// A feature is a mask, a bias, a window: whatever acts between the load of x and the softmax. It is a class with
//   struct Params                                  its run-time arguments, part of the kernel's by-value struct
//   Feature(Params const&, Rows const&, RowIndex const&)
//   from(column) -> Feature                        itself, for a row that begins there
//   HidesTail, end(k) -> int                       columns at and beyond the end are hidden: neither read nor computed
//   HidesHead, begin() -> int                      columns before it are hidden and not read (never: a static 0)
//   Fragment<Vec>                                  the registers it needs for a vector
//   load(how, row, seen, fragment)                 fills fragment(part) of every part with its columns seen(part), by load_parts
//   apply(span, fragment, rZ)                      applies the feature to the vector's scores
// It derives from InertFeature, and declares of these what differs. A new one is a header beside this; nothing here changes.

namespace softmax {

struct NoFragment
{};

// Hides nothing, loads nothing, and leaves the scores as they are.
struct InertFeature
{
  static constexpr bool HidesTail = false;
  static constexpr bool HidesHead = false;

  template <int Vec>
  using Fragment = NoFragment;

  CUTE_DEVICE static cute::_0 begin() { return {}; }
  CUTE_DEVICE static int end(int k) { return k; }

  template <class How, class Row, class Seen, class Registers>
  CUTE_DEVICE void load(How, Row const&, Seen, Registers) const
  {}

  template <class Span, class ScoreVector>
  CUTE_DEVICE void apply(Span const&, NoFragment, ScoreVector&&) const
  {}
};

template <class Element, class... Features>
class Scores
{
public:
  using Accumulator = typename Numeric<Element>::Accumulator;

  CUTE_DEVICE explicit Scores(Accumulator scale, Features const&... features) : scale_(scale), features_(features...) {}

  // Those of the columns from `column` on.
  CUTE_DEVICE Scores from(int column) const
  {
    Scores scores = *this;
    cute::for_each(scores.features_, [&](auto& feature) { feature = feature.from(column); });
    return scores;
  }

  // The column of the row, of at most k, from which on all are hidden.
  CUTE_DEVICE int end(int k) const
  {
    cute::for_each(features_, [&](auto const& feature) { k = feature.end(k); });
    return k;
  }

  // The first column that no feature hides: a static 0, unless one hides the head of a row.
  CUTE_DEVICE auto begin() const
  {
    if constexpr (HidesHead) {
      int begin = 0;
      cute::for_each(features_, [&](auto const& feature) { begin = cute::max(begin, int(feature.begin())); });
      return begin;
    } else {
      return cute::_0{};
    }
  }

  // The lane's scores of the row at x, whose visible columns end at `end`; columns of its parts that are hidden score -inf.
  template <class Row, class ScoreTensor>
  CUTE_DEVICE void load(Row const& row, Element const* x, int end, ScoreTensor& rZ /* (V*C+E) */) const
  {
    using namespace cute;
    Tensor rX = make_row_fragment<Row, Element>();  // (V*C+E)
    clear(rX);
    RowFragments<Row> fragments = {};

    // All loads from global memory are issued before the first use.
    auto const seen = [&](auto part) { return visible(part.span(row, end)); };
    for_each(make_tuple(Whole{}, ByElement{}), [&](auto how) {
      if constexpr (!Row::InSharedMemory) {
        load_parts(how, row, seen, x, [&](auto part) { return part.of(rX); });
      }
      for_each(make_seq<sizeof...(Features)>{}, [&](auto i) {
        constexpr int I = decltype(i)::value;
        get<I>(features_).load(how, row, seen, [&](auto part) -> auto& { return get<I>(fragments.of(part)); });
      });
    });
    // Vectors from global memory are used whether or not they are inside the row: with a branch around the use, ptxas moves each
    // load behind that branch, and their latencies add up.
    auto const used = cute::conditional_t<Row::InSharedMemory, int, EveryColumn>{end};
    for_each_part(row, used, [&](auto part) {
      if constexpr (Row::InSharedMemory) { seen(part).read(x, part.of(rX)); }
      score(seen(part), part.of(rX), fragments.of(part), part.of(rZ));
    });
  }

private:
  // Some feature ends the row inside a vector. Otherwise vectors are inside or outside as a whole.
  static constexpr bool HidesTail = (Features::HidesTail || ... || false);
  static constexpr bool HidesHead = (Features::HidesHead || ... || false);

  template <int Width>
  using Fragments = cute::tuple<typename Features::template Fragment<Width>...>;

  // The features' registers for every part of a row.
  template <class Row>
  struct RowFragments
  {
    Fragments<Row::Vec> vectors[Row::Chunks];
    Fragments<1> edges[Row::Edges + 1];  // one more: an array has no size 0

    CUTE_DEVICE auto& of(VectorPart<Row> part) { return vectors[part.c]; }
    CUTE_DEVICE auto& of(EdgePart<Row> part) { return edges[part.edge()]; }
  };

  Accumulator scale_;
  cute::tuple<Features...> features_;

  template <class Span>
  CUTE_DEVICE Span visible(Span const& span) const
  {
    if constexpr (HidesHead) { return span.from(begin()); }
    return span;
  }

  template <class Span, class Vector, class Fragments, class ScoreVector>
  CUTE_DEVICE void score(
      Span const& span, Vector const& rX /* (V) */, Fragments const& fragments, ScoreVector&& rZ /* (V) */) const
  {
    constexpr int Vec = decltype(cute::size(rZ))::value;
    int const inside  = span.end - span.column;

    // Registers that nothing was loaded into hold 0: adding -inf to the product hides a whole vector at no cost.
    Accumulator const outside = HidesTail || inside > 0 ? Accumulator(0) : negative_infinity<Accumulator>();
    widen(rX, rZ);
    CUTE_UNROLL
    for (int v = 0; v < Vec; ++v) { rZ(v) = fma(scale_, rZ(v), outside); }
    cute::for_each(cute::make_seq<sizeof...(Features)>{}, [&](auto i) {
      cute::get<i>(features_).apply(span, cute::get<i>(fragments), rZ);
    });
    // Only the vectors across an end pay for a comparison of every element.
    if constexpr (HidesHead) {
      int const hidden    = begin() - span.column;
      uint32_t const seen = cute::max(inside - hidden, 0);
      if (hidden > 0 || inside < Vec) {
        CUTE_UNROLL
        for (int v = 0; v < Vec; ++v) {
          if (uint32_t(v - hidden) >= seen) { rZ(v) = negative_infinity<Accumulator>(); }
        }
      }
    } else if (HidesTail && inside < Vec) {
      CUTE_UNROLL
      for (int v = 0; v < Vec; ++v) {
        if (v >= inside) { rZ(v) = negative_infinity<Accumulator>(); }
      }
    }
  }
};

template <class Element, class Accumulator, class... Features>
CUTE_DEVICE auto make_scores(Accumulator scale, Features const&... features)
{
  return Scores<Element, Features...>(scale, features...);
}

}  // namespace softmax

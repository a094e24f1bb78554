#pragma once

#include <softmax/rows.cuh>
#include <softmax/scores.cuh>

namespace softmax {

// A feature that a launch may leave out. Presence is uniform over the grid: one branch for each vector.
template <class Feature>
struct Optional
{
  using Params = typename Feature::Params;

  static constexpr bool HidesTail = Feature::HidesTail;
  static constexpr bool HidesHead = Feature::HidesHead;

  template <int Vec>
  using Fragment = typename Feature::template Fragment<Vec>;

  Feature feature;
  bool present;

  CUTE_DEVICE Optional(Params const& p, Rows const& rows, RowIndex const& index)
    : feature(p, rows, index), present(Feature::is_present(p))
  {}

  CUTE_DEVICE Optional(Feature const& feature, bool present) : feature(feature), present(present) {}

  CUTE_DEVICE Optional from(int column) const { return Optional(feature.from(column), present); }
  CUTE_DEVICE auto begin() const { return feature.begin(); }
  CUTE_DEVICE int end(int end) const { return feature.end(end); }

  template <class How, class Row, class Seen, class Registers>
  CUTE_DEVICE void load(How how, Row const& row, Seen seen, Registers fragment) const
  {
    feature.load(how, row, seen, fragment, present);
  }

  template <class Span, class Fragment, class ScoreVector>
  CUTE_DEVICE void apply(Span const& span, Fragment const& fragment, ScoreVector&& rZ /* (V) */) const
  {
    if (present) { feature.apply(span, fragment, rZ); }
  }
};

}  // namespace softmax

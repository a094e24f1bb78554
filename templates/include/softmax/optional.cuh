#pragma once

#include <softmax/rows.cuh>
#include <softmax/scores.cuh>

namespace softmax {

// A feature that a launch may leave out, which has two things more:
//   is_present(Params) -> bool                     whether the launch has it
//   load(how, row, seen, fragment, wanted)         loads nothing unless `wanted`
// Presence is uniform over the grid: one branch for each vector.
template <class Feature>
struct Optional : InertFeature
{
  static_assert(!Feature::HidesTail && !Feature::HidesHead, "it would end a row that does not have it");

  using Params = typename Feature::Params;

  template <int Vec>
  using Fragment = typename Feature::template Fragment<Vec>;

  Feature feature;
  bool present;

  CUTE_DEVICE Optional(Params const& p, Rows const& rows, RowIndex const& index)
    : feature(p, rows, index), present(Feature::is_present(p))
  {}

  CUTE_DEVICE Optional(Feature const& feature, bool present) : feature(feature), present(present) {}

  CUTE_DEVICE Optional from(int column) const { return Optional(feature.from(column), present); }

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

#pragma once

#include <softmax/backward.cuh>
#include <softmax/rows.cuh>

namespace softmax {

// The gradient of what a forward with an epilogue gives, in terms of its results y, and of the gradients dy and dlse.
//
//   probabilities  dz = y (dy - d),       d = sum_j y_j dy_j - dlse
//   logarithms     dz = dy - exp(y) d,    d = sum_j dy_j - dlse
//   dx = scale * dz
//
// Columns whose y is 0, or whose logarithm -inf, were hidden or underflowed: their dz is 0, whatever dy is. If d is NaN, it
// stays 0 for logarithms and becomes NaN, 0 * NaN, for probabilities.
template <class Element>
class EpilogueGradient
{
public:
  using Accumulator = typename Numeric<Element>::Accumulator;

  struct Params
  {
    int64_t logarithms;
    RowValue<Accumulator const> scale;  // times the scale of all rows
    RowValue<Accumulator const> dlse;
    RowValue<Accumulator> d;
  };

  CUTE_DEVICE EpilogueGradient(Params const& p, Accumulator scale, Rows const& rows, RowIndex const& index)
    : p_(p),
      rows_(rows),
      index_(index),
      scale_(p.scale.present() ? scale * p.scale.at(rows, index) : scale),
      logarithms_(p.logarithms != 0)
  {}

  CUTE_DEVICE Element hidden() const { return logarithms_ ? Element(negative_infinity<Accumulator>()) : Element(0); }

  CUTE_DEVICE Accumulator add(Accumulator sum, Accumulator y, Accumulator dy) const
  {
    if (logarithms_) { return y == negative_infinity<Accumulator>() ? sum : sum + dy; }
    return fma(y, dy, sum);
  }

  // d of a row, from its dot product. One of the threads that hold it writes it.
  CUTE_DEVICE Accumulator close(Accumulator dot, bool writes) const
  {
    Accumulator const d = p_.dlse.present() ? dot - p_.dlse.at(rows_, index_) : dot;
    if (writes && p_.d.present()) { p_.d.at(rows_, index_) = d; }
    return d;
  }

  CUTE_DEVICE Accumulator outside(Accumulator d) const { return logarithms_ ? Accumulator(0) : 0 * d; }

  // dx in place of dy.
  template <class Vector>
  CUTE_DEVICE void apply(Vector& rG /* (V) */, Vector const& rY /* (V) */, Accumulator d) const
  {
    differentiate(rG, rY, d);
    scale(rG);
  }

protected:
  CUTE_DEVICE bool logarithms() const { return logarithms_; }

  // dz in place of dy.
  template <class Vector>
  CUTE_DEVICE void differentiate(Vector& rG /* (V) */, Vector const& rY /* (V) */, Accumulator d) const
  {
    typename Numeric<Element>::Exp const exp(0);
    CUTE_UNROLL
    for (int v = 0; v < cute::size(rG); ++v) {
      if (logarithms_) {
        rG(v) = rY(v) == negative_infinity<Accumulator>() ? Accumulator(0) : rG(v) - exp.exact(rY(v)) * d;
      } else {
        rG(v) = rY(v) * (rG(v) - d);
      }
    }
  }

  template <class Vector>
  CUTE_DEVICE void scale(Vector& rG /* (V) */) const
  {
    CUTE_UNROLL
    for (int v = 0; v < cute::size(rG); ++v) { rG(v) *= scale_; }
  }

private:
  Params const& p_;
  Rows const& rows_;
  RowIndex const& index_;
  Accumulator scale_;
  bool logarithms_;
};

// The gradient of a forward whose scores may have been capped: dz times max(1 - (s / cap)^2, 0), where s = log y + lse is the
// capped score.
template <class Element>
class CappedGradient : public EpilogueGradient<Element>
{
public:
  using Base        = EpilogueGradient<Element>;
  using Accumulator = typename Base::Accumulator;

  struct Params : Base::Params
  {
    RowValue<Accumulator const> lse;
    double inverse_cap;  // 1 / softcap, which needs lse; 0: none
  };

  CUTE_DEVICE CappedGradient(Params const& p, Accumulator scale, Rows const& rows, RowIndex const& index)
    : Base(p, scale, rows, index),
      inverse_cap_(Accumulator(p.inverse_cap)),
      lse_(p.lse.present() ? p.lse.at(rows, index) : Accumulator(0))
  {}

  // dx in place of dy.
  template <class Vector>
  CUTE_DEVICE void apply(Vector& rG /* (V) */, Vector const& rY /* (V) */, Accumulator d) const
  {
    this->differentiate(rG, rY, d);
    if (inverse_cap_ != 0) {
      CUTE_UNROLL
      for (int v = 0; v < cute::size(rG); ++v) {
        Accumulator const log_y = this->logarithms() ? rY(v) : approximate_log(rY(v));
        Accumulator const t     = (log_y + lse_) * inverse_cap_;
        // A result that was rounded up may be that of a score beyond the cap, where the slope is 0.
        rG(v) *= log_y == negative_infinity<Accumulator>() ? Accumulator(0) : max_number(1 - t * t, Accumulator(0));
      }
    }
    this->scale(rG);
  }

private:
  Accumulator inverse_cap_;
  Accumulator lse_;
};

}  // namespace softmax

#pragma once

#include <softmax/forward.cuh>
#include <softmax/reduce.cuh>
#include <softmax/rows.cuh>

namespace softmax {

// y = factor * e + shift: probabilities of exponentials (shift 0), or logarithms of exponents (factor 1).
template <class Accumulator>
struct ProbabilitiesOrLogarithms
{
  Accumulator factor;
  Accumulator shift;
  bool logarithms;

  CUTE_DEVICE Accumulator operator()(Accumulator e) const { return fma(factor, e, shift); }
  CUTE_DEVICE Accumulator hidden() const { return logarithms ? negative_infinity<Accumulator>() + shift : 0 * factor; }
};

// How a row ends, once its maximum and sum are known: a sink joins the sum, the logarithm of the sum is written, and the
// results are probabilities or their logarithms.
//
//   lse = m + log(sum),  log y = (z - m) - log(sum)
template <class Numeric>
class Epilogue
{
public:
  using Accumulator = typename Numeric::Accumulator;

  struct Params
  {
    int64_t logarithms;
    RowValue<Accumulator const> scale;  // times the scale of all rows
    RowValue<Accumulator const> sinks;  // scores of an extra column that is not stored
    RowValue<Accumulator> lse;
  };

  CUTE_DEVICE Epilogue(Params const& p, Rows const& rows, RowIndex const& index) : p_(p), rows_(rows), index_(index) {}

  CUTE_DEVICE Accumulator scale(Accumulator scale) const
  {
    return p_.scale.present() ? scale * p_.scale.at(rows_, index_) : scale;
  }

  CUTE_DEVICE bool keeps_exponents() const { return p_.logarithms != 0; }

  // What is known of a row in the end.
  struct Closed : MaxSum<Numeric>
  {
    Accumulator log_sum;  // where it is asked for; -inf in a row that sees nothing
  };

  // One of the threads that hold the row writes the logarithm of its sum.
  CUTE_DEVICE Closed close(MaxSum<Numeric> row, bool writes) const
  {
    using Exp = typename Numeric::Exp;
    if (p_.sinks.present()) {
      Accumulator const sink = p_.sinks.at(rows_, index_);
      row.add({sink, Exp::unit});
    }
    Accumulator log_sum = 0;
    if (keeps_exponents() || p_.lse.present()) { log_sum = logarithm(row.sum / Exp::unit); }
    if (writes && p_.lse.present()) { p_.lse.at(rows_, index_) = row.max + log_sum; }
    return {row, log_sum};
  }

  // Maps exponentials relative to `max`, or exponents z - max, to the results of the closed row.
  CUTE_DEVICE ProbabilitiesOrLogarithms<Accumulator> outcome(Accumulator max, Closed const& row) const
  {
    if (keeps_exponents()) {
      Accumulator const less = typename Numeric::Exp(max).m - typename Numeric::Exp(row.max).m;
      return {1, row.log_sum == negative_infinity<Accumulator>() ? 0 : less - row.log_sum, true};
    }
    return {normaliser(max, MaxSum<Numeric>(row)), 0, false};
  }

  // Of what is relative to the maximum of the closed row.
  CUTE_DEVICE ProbabilitiesOrLogarithms<Accumulator> outcome(Closed const& row) const
  {
    if (keeps_exponents()) { return {1, row.log_sum == negative_infinity<Accumulator>() ? 0 : -row.log_sum, true}; }
    return {normaliser<Numeric>(row.sum), 0, false};
  }

private:
  Params const& p_;
  Rows const& rows_;
  RowIndex const& index_;
};

}  // namespace softmax

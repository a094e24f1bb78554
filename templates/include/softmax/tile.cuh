#pragma once

#include <cute/tensor.hpp>

#include <softmax/forward.cuh>
#include <softmax/row_io.cuh>

namespace softmax {

struct TileParams
{
  int32_t rows_per_cta;
  int32_t flat;  // x and y are contiguous: the rows of a CTA are one range of memory
};

// Moves the rows of a CTA between global and shared memory, where they lie one after the other.
//
// A flat range is copied like one ragged row, at most two vectors per thread: it stands in shared memory at the phase of its
// output, so that a vector is aligned in both. Strided rows are copied element by element, Lanes neighbouring threads to a row.
template <class Element, int Threads, int Lanes>
class TileCopy
{
public:
  CUTE_DEVICE TileCopy(Forward<Element> const& operands, bool flat, int first, int count)
    : operands_(operands), flat_(flat), first_(first), count_(count)
  {}

  // The tile's first element in shared memory.
  CUTE_DEVICE Element* place(void* smem) const
  {
    return static_cast<Element*>(smem) + reinterpret_cast<uintptr_t>(flat_y()) / sizeof(Element) % Vec;
  }

  CUTE_DEVICE void load(Element* sTile /* (count,K) */) const
  {
    if (flat_) {
      copy_range<false>(operands_.x + flat_offset(), sTile);
    } else {
      copy_rows([&](RowIndex const& index, int r, int column) {
        sTile[r * k() + column] = operands_.x[index.offset(operands_.x_strides, operands_.rows.rank) + column];
      });
    }
  }

  CUTE_DEVICE void store(Element const* sTile /* (count,K) */) const
  {
    if (flat_) {
      copy_range<true>(sTile, flat_y());
    } else {
      copy_rows([&](RowIndex const& index, int r, int column) {
        operands_.y[index.offset(operands_.y_strides, operands_.rows.rank) + column] = sTile[r * k() + column];
      });
    }
  }

private:
  static constexpr int Vec = 16 / sizeof(Element);
  template <bool InPhase>
  using Range = RaggedRow<Vec, Threads, /*Chunks=*/2, InPhase>;

  Forward<Element> const& operands_;
  bool flat_;
  int first_;
  int count_;

  CUTE_DEVICE int k() const { return operands_.rows.k; }
  CUTE_DEVICE int64_t flat_offset() const { return int64_t(first_) * k(); }
  CUTE_DEVICE Element* flat_y() const { return operands_.y + flat_offset(); }

  // All reads are issued before the first write.
  template <bool InPhase>
  CUTE_DEVICE void copy_range(Element const* source, Element* target) const
  {
    int const n = count_ * k();
    using Row = Range<InPhase>;
    Row const range(threadIdx.x, flat_y(), n);
    cute::Tensor rT = make_row_fragment<Row, Element>();  // (V*C+E)
    for_each_part<Row>(n, [&](auto part) { part.span(range, n).load(source, part.of(rT)); });
    for_each_part<Row>(n, [&](auto part) { part.span(range, n).store(target, part.of(rT)); });
  }

  template <class Copy>
  CUTE_DEVICE void copy_rows(Copy copy) const
  {
    CUTE_NO_UNROLL
    for (int r = threadIdx.x / Lanes; r < count_; r += Threads / Lanes) {
      RowIndex const index(operands_.rows, first_ + r);
      CUTE_NO_UNROLL
      for (int column = threadIdx.x % Lanes; column < k(); column += Lanes) { copy(index, r, column); }
    }
  }
};

}  // namespace softmax

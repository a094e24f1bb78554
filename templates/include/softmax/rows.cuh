#pragma once

#include <cute/config.hpp>

#include <softmax/ptx.cuh>

// From the number of a row to the addresses of its operands. All rows of a launch: [d3, d2, d1, d0, K], leading dimensions
// coalesced on the host, d0 varying fastest. A broadcast dimension has stride 0, an absent one has size 1.

namespace softmax {

constexpr int kMaxRank = 4;

// n / divisor for 0 <= n < 2^31, by the high word of a product and a shift.
//   shift = ceil(log2(divisor)), multiplier = ceil(2^(31 + shift) / divisor):  n / divisor = 2 n multiplier / 2^(32 + shift)
// The error is below n / 2^(31 + shift) < 1 / divisor, so the quotient is exact.
// Granlund & Montgomery, Division by Invariant Integers using Multiplication (1994).
struct Divisor
{
  uint32_t divisor;
  uint32_t multiplier;
  uint32_t shift;

  CUTE_DEVICE uint32_t quotient(uint32_t n) const { return __umulhi(2 * n, multiplier) >> shift; }
};

struct Rows
{
  int32_t count;               // rows of the launch
  int32_t k;                   // columns of a row
  int32_t rank;                // leading dimensions in use, 1..4
  Divisor size[kMaxRank - 1];  // of d0, d1, d2; d3 takes what is left
};

struct RowStrides
{
  int32_t stride[kMaxRank];  // elements, for d0 .. d3
};

struct RowIndex
{
  int index[kMaxRank];

  CUTE_DEVICE RowIndex(Rows const& rows, int row) : index{row, 0, 0, 0}
  {
    if (rows.rank > 1) {
      CUTE_UNROLL
      for (int d = 0; d + 1 < kMaxRank; ++d) {
        index[d + 1] = rows.size[d].quotient(index[d]);
        index[d] -= index[d + 1] * rows.size[d].divisor;
      }
    }
  }

  // Offset of the row's first element, in elements.
  CUTE_DEVICE int64_t offset(RowStrides const& strides, int rank) const
  {
    int64_t offset = ptx::multiply_add_wide(index[0], strides.stride[0], 0);
    if (rank > 1) {
      CUTE_UNROLL
      for (int d = 1; d < kMaxRank; ++d) { offset = ptx::multiply_add_wide(index[d], strides.stride[d], offset); }
    }
    return offset;
  }
};

// A number for each row; a dimension whose rows share one has stride 0. Absent where the address is null.
template <class Value>
struct RowValue
{
  Value* address;
  RowStrides strides;  // elements

  CUTE_DEVICE bool present() const { return address != nullptr; }
  CUTE_DEVICE Value& at(Rows const& rows, RowIndex const& row) const { return address[row.offset(strides, rows.rank)]; }
};

}  // namespace softmax

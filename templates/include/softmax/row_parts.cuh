#pragma once

#include <cute/tensor_impl.hpp>

#include <softmax/span.cuh>

// What a lane holds of a row, and how an operand is loaded into it. The rows themselves are in row_io.cuh.

namespace softmax {

// A lane's share of a row consists of parts: its vectors, and its edge columns if the row has some. A part finds its registers in
// a fragment and its columns in the row.
template <class Row>
struct VectorPart
{
  static constexpr int Width = Row::Vec;
  int c;

  // Whether the part may have columns before `end`, the same answer in every lane of a warp. Vectors beyond it are skipped,
  // unless a branch costs more than it saves.
  template <class End>
  CUTE_DEVICE bool reaches(Row const& row, End end) const
  {
    return row.reaches(c, end);
  }

  template <class Fragment>
  CUTE_DEVICE auto of(Fragment&& rZ /* (V*C+E) */) const
  {
    return cute::make_tensor(rZ.data() + Row::Vec * c, cute::Shape<cute::Int<Row::Vec>>{});  // (V)
  }

  CUTE_DEVICE auto span(Row const& row, int end) const { return row.vector(c, end); }
};

template <class Row>
struct EdgePart
{
  static constexpr int Width = 1;
  int c;  // Chunks, Chunks + 1, ...

  template <class End>
  CUTE_DEVICE bool reaches(Row const& /*row*/, End /*end*/) const
  {
    return true;
  }

  template <class Fragment>
  CUTE_DEVICE auto of(Fragment&& rZ /* (V*C+E) */) const
  {
    return cute::make_tensor(rZ.data() + Row::Vec * Row::Chunks + edge(), cute::Shape<cute::_1>{});  // (1)
  }

  CUTE_DEVICE auto span(Row const& row, int end) const { return row.edge(edge(), end); }
  CUTE_DEVICE int edge() const { return c - Row::Chunks; }
};

// The registers of a lane's share, one flat tensor of shape (V*C+E): the Vec columns of each of its Chunks vectors, then its Edges
// single columns.
template <class Row, class Value>
CUTE_DEVICE auto make_row_fragment()
{
  return cute::make_tensor<Value>(cute::Shape<cute::Int<Row::Vec * Row::Chunks + Row::Edges>>{});
}

// Passed as the end of a row: every vector is visited.
struct EveryColumn
{
  EveryColumn() = default;
  CUTE_DEVICE explicit constexpr EveryColumn(int /*end*/) {}
};
constexpr EveryColumn kEveryColumn;

// body(part) for the parts that reach into the first `end` columns of a row.
template <class Row, class End, class Body>
CUTE_DEVICE void for_each_part(Row const& row, End end, Body body)
{
  CUTE_UNROLL
  for (int c = 0; c < Row::Chunks; ++c) {
    VectorPart<Row> const part{c};
    if (part.reaches(row, end)) { body(part); }
  }
  if constexpr (Row::Edges > 0) {
    CUTE_UNROLL
    for (int edge = 0; edge < Row::Edges; ++edge) { body(EdgePart<Row>{Row::Chunks + edge}); }
  }
}

// How the vectors of an operand are loaded: whole where they are aligned, element by element where they are not.
struct Whole
{};
struct ByElement
{};

// The columns seen(part) of an operand into registers(part), of every part of a row whose vectors are loaded in this way. What
// a row needs is all loaded whole before any of it is by element: that is a branch, and ptxas moves the use of what was loaded
// before a branch ahead of it.
template <class Row, class Seen, class Element, class Registers>
CUTE_DEVICE void load_parts(
    Whole, Row const& row, Seen seen, Element const* operand /* (K) */, Registers registers, bool wanted = true)
{
  bool const aligned = row.is_aligned(operand);
  for_each_part(row, kEveryColumn, [&](auto part) {
    seen(part).load(wanted && (aligned || part.Width == 1), operand, registers(part));
  });
}

template <class Row, class Seen, class Element, class Registers>
CUTE_DEVICE void load_parts(
    ByElement, Row const& row, Seen seen, Element const* operand /* (K) */, Registers registers, bool wanted = true)
{
  if (wanted && !row.is_aligned(operand)) {
    for_each_part(row, kEveryColumn, [&](auto part) {
      if constexpr (part.Width > 1) { seen(part).gather(operand, registers(part)); }
    });
  }
}

}  // namespace softmax

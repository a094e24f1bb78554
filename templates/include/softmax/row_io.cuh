#pragma once

#include <cute/tensor_impl.hpp>

#include <softmax/ptx.cuh>

// How the lanes that share a row divide its columns, and how their parts move between memory and registers.
//
// A row is cut into vectors of Vec elements, dealt to the lanes in turn: lane l holds the vectors l, l + Lanes, ...
// ByWarp: each warp first gets Lanes * Chunks neighbouring vectors, dealt to its lanes in the same way, and a launch has as many
// warps as hold the row. Skips: for a warp that sees none of its columns the row ends at 0, before its first column.
// Nothing outside [0, K) is ever touched, and no access is wider than its address is aligned.

namespace softmax {

// A register or up to four, in which Vec elements move.
template <class Element, int Vec, int Widest = 16, int Bytes = cute::min(Vec * int(sizeof(Element)), Widest)>
using WordOf = cute::conditional_t<
    Bytes == 16, uint4, cute::conditional_t<Bytes == 8, uint2, cute::uint_bit_t<8 * Bytes>>>;

// The same as a number; an element that moves by itself stays what it is.
template <class Element, int Vec, int Widest = 16, int Bytes = cute::min(Vec * int(sizeof(Element)), Widest)>
using BitsOf = cute::conditional_t<Bytes == sizeof(Element), Element, cute::uint_bit_t<8 * Bytes>>;

// Vec neighbouring columns of a row, from `column` on. They are this lane's to handle when column < end. Streamed
// stores are evicted from L2 first, which keeps the rows that are read again.
template <int Vec, bool Streamed = false, int Widest = 16>
struct Span
{
  static constexpr int Width = Vec;

  int column;
  int end;

  // Empty if all its columns lie before `begin`.
  CUTE_DEVICE Span from(int begin) const { return {column, column + Vec <= begin ? column : end}; }
  CUTE_DEVICE Span from(cute::_0) const { return *this; }

  // Loads from global memory if `wanted`. The operand is aligned to the words in which it moves.
  template <class Element, class Fragment>
  CUTE_DEVICE void load(bool wanted, Element const* row, Fragment&& rX /* (V) */) const
  {
    using Word             = WordOf<Element, Vec>;
    auto const* const from = reinterpret_cast<Word const*>(row + column);
    cute::Tensor rWord     = cute::recast<Word>(rX);  // (V/elements of a word)
    CUTE_UNROLL
    for (int i = 0; i < cute::size(rWord); ++i) { ptx::load_if(wanted && column < end, from + i, rWord(i)); }
  }

  // Element by element, at any alignment. Registers of several are put together once all are under way.
  template <class Element, class Fragment>
  CUTE_DEVICE void gather(Element const* row, Fragment&& rX /* (V) */) const
  {
    using namespace cute;
    if constexpr (sizeof(Element) < sizeof(uint32_t) && Vec * sizeof(Element) % sizeof(uint32_t) == 0) {
      constexpr int PerRegister = sizeof(uint32_t) / sizeof(Element);
      auto const* const from    = reinterpret_cast<WordOf<Element, 1> const*>(row + column);
      uint32_t each[Vec]        = {};
      CUTE_UNROLL
      for (int v = 0; v < Vec; ++v) { ptx::load_if(column < end, from + v, each[v]); }

      Tensor rJoined = recast<uint32_t>(rX);  // (V/PerRegister)
      CUTE_UNROLL
      for (int i = 0; i < size(rJoined); ++i) { rJoined(i) = ptx::join(from, each + PerRegister * i); }
    } else {
      // Each is a register of its own: ptxas predicates these loads by itself, and spills if it may not reorder them.
      if (column < end) {
        CUTE_UNROLL
        for (int v = 0; v < Vec; ++v) { rX(v) = row[column + v]; }
      }
    }
  }

  // From shared memory.
  template <class Element, class Fragment>
  CUTE_DEVICE void read(Element const* row, Fragment&& rX /* (V) */) const
  {
    if (column < end) {
      using Bits             = BitsOf<Element, Vec, Widest>;
      auto const* const from = reinterpret_cast<Bits const*>(row + column);
      cute::Tensor rBits     = cute::recast<Bits>(rX);  // (V/elements of a word)
      CUTE_UNROLL
      for (int i = 0; i < cute::size(rBits); ++i) { rBits(i) = from[i]; }
    }
  }

  template <class Element, class Fragment>
  CUTE_DEVICE void store(Element* row, Fragment const& rY /* (V) */) const
  {
    using namespace cute;
    if (column < end) {
      if constexpr (Streamed && Vec * sizeof(Element) % sizeof(uint4) == 0) {
        CUTE_UNROLL
        for (int i = 0; i < Vec * sizeof(Element) / sizeof(uint4); ++i) {
          __stcs(reinterpret_cast<uint4*>(row + column) + i, recast<uint4>(rY)(i));
        }
      } else {
        using Bits   = BitsOf<Element, Vec, Widest>;
        Tensor rBits = recast<Bits>(rY);  // (V/elements of a word)
        CUTE_UNROLL
        for (int i = 0; i < size(rBits); ++i) { reinterpret_cast<Bits*>(row + column)[i] = rBits(i); }
      }
    }
  }
};

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

// Which of a row's vectors a thread holds: first, first + Lanes, ...
template <int Lanes, int Chunks, bool ByWarp>
struct Share
{
  static_assert(!ByWarp || Lanes == 32, "the lanes of a warp");

  int begin;  // first of those that are dealt together
  int first;

  // The compiler knows that what is read from one lane is the same in all: branches on it do not diverge.
  CUTE_DEVICE explicit Share(int thread)
    : begin(ByWarp ? Lanes * Chunks * __shfl_sync(ptx::kFullMask, thread / Lanes, 0) : 0),
      first(ByWarp ? begin + thread % Lanes : thread)
  {}

  // The end of what the warp sees of a row whose columns are visible from `begin` to `end`: 0 if those are not among its own, which
  // begin at `head`. The first warp has the columns beside the vectors, too.
  template <int Vec, class Begin>
  CUTE_DEVICE int end_in_warp(int head, Begin first_visible, int end) const
  {
    bool const before = Vec * begin < end;
    bool const after  = begin == 0 || head + Vec * (begin + Lanes * Chunks) > first_visible;
    return before && after ? end : 0;
  }
};

// Whether vectors beyond the end of a row may be skipped. Around fewer elements a branch costs more than it saves.
template <int Vec>
constexpr bool kSkipsVectors = Vec >= 4;

// A kind of row is a class with
//   Vec, Lanes, Chunks, Edges                      how many columns a lane holds, and how
//   head_of(output)                                how many columns precede the row's first vector
//   InSharedMemory                                 it lies in shared memory: its elements are read where they are used
//   vector(c, end) -> span                         the columns of a lane's vectors
//   edge(edge, end) -> span                        and, if Edges > 0, its single columns
//   Skips, end_in_warp(begin, end)                 if a block or cluster has it: the end of what the thread's warp sees of a row
//                                                  visible from `begin` to `end`
//   is_aligned(operand)                            whether its vectors may be loaded whole
//   reaches(c, end)                                whether any lane's vector c has columns before `end` that are worth a visit;
//                                                  before kEveryColumn: whether it may be loaded

// Every operand's row starts on a vector boundary and K is a multiple of Vec: vectors are inside the row or outside of it.
template <int Vec_, int Lanes_, int Chunks_, bool ByWarp_ = false, bool Skips_ = false>
struct AlignedRow
{
  static constexpr int Vec             = Vec_;
  static constexpr int Lanes           = Lanes_;
  static constexpr int Chunks          = Chunks_;
  static constexpr bool ByWarp         = ByWarp_;
  static constexpr bool Skips          = Skips_;
  static constexpr int Edges           = 0;
  static constexpr bool InSharedMemory = false;

  Share<Lanes, Chunks, ByWarp> share;

  template <class Element>
  CUTE_DEVICE AlignedRow(int thread, Element const* /*output*/, int /*k*/) : share(thread)
  {}

  template <class Element>
  CUTE_DEVICE static cute::_0 head_of(Element const* /*output*/)
  {
    return {};
  }

  // Where one warp holds the row, lengths grow by two from kernel to kernel: a branch would cost more than it saves.
  CUTE_DEVICE bool reaches(int c, int end) const
  {
    constexpr bool Always = !kSkipsVectors<Vec> || (Lanes <= 32 && !ByWarp);
    return Always || c == 0 || Vec * (share.begin + Lanes * c) < end;
  }

  CUTE_DEVICE static bool reaches(int /*c*/, EveryColumn) { return true; }

  template <class Begin>
  CUTE_DEVICE int end_in_warp(Begin begin, int end) const
  {
    if constexpr (Skips) { return share.template end_in_warp<Vec>(0, begin, end); }
    return end;
  }

  template <class Element>
  CUTE_DEVICE static cute::true_type is_aligned(Element const* /*operand*/)
  {
    return {};
  }

  // The lane's vector c, c < Chunks, as far as it begins before `end`.
  CUTE_DEVICE Span<Vec> vector(int c, int end) const { return {Vec * (share.first + Lanes * c), end}; }
};

// Rows start anywhere. The cuts follow the vector boundaries of the output, so every vector is stored whole; the fewer than
// Vec columns before the first cut and after the last are dealt to the lanes one by one.
//
//   | head | vector 0 | vector 1 | ... | vector n-1 | tail |
//   0      head                                     tail   K
template <int Vec_, int Lanes_, int Chunks_, bool ByWarp_ = false, bool Skips_ = false, bool Streamed = false>
struct UnalignedRow
{
  static constexpr int Vec             = Vec_;
  static constexpr int Lanes           = Lanes_;
  static constexpr int Chunks          = Chunks_;
  static constexpr bool ByWarp         = ByWarp_;
  static constexpr bool Skips          = Skips_;
  static constexpr int Edges           = (2 * (Vec - 1) + Lanes - 1) / Lanes;
  static constexpr bool InSharedMemory = false;
  static_assert(!ByWarp || Edges == 1, "the first warp has an edge column for each lane at most");

  Share<Lanes, Chunks, ByWarp> share;
  int thread;
  int head;
  int tail;

  template <class Element>
  CUTE_DEVICE UnalignedRow(int thread, Element const* output, int k) : share(thread), thread(thread)
  {
    head = cute::min(head_of(output), k);
    tail = head + (k - head) / Vec * Vec;
  }

  template <class Element>
  CUTE_DEVICE static int head_of(Element const* output)
  {
    int const phase = int(reinterpret_cast<uintptr_t>(output) / sizeof(Element) % Vec);
    return (Vec - phase) % Vec;
  }

  CUTE_DEVICE bool reaches(int c, int end) const { return !kSkipsVectors<Vec> || c == 0 || Vec * (share.begin + Lanes * c) < end; }
  CUTE_DEVICE static bool reaches(int /*c*/, EveryColumn) { return true; }

  template <class Begin>
  CUTE_DEVICE int end_in_warp(Begin begin, int end) const
  {
    if constexpr (Skips) { return share.template end_in_warp<Vec>(head, begin, end); }
    return end;
  }

  template <class Element>
  CUTE_DEVICE bool is_aligned(Element const* operand) const
  {
    return reinterpret_cast<uintptr_t>(operand + head) % sizeof(WordOf<Element, Vec>) == 0;
  }

  CUTE_DEVICE Span<Vec, Streamed> vector(int c, int end) const
  {
    return {head + Vec * (share.first + Lanes * c), cute::min(end, tail)};
  }

  // The lane's column number `edge` of head and tail together; at or beyond K where there is none.
  CUTE_DEVICE Span<1> edge(int edge, int end) const
  {
    int const i = thread + Lanes * edge;
    return {i < head ? i : tail + (i - head), end};
  }
};

}  // namespace softmax

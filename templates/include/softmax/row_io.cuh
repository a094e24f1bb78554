#pragma once

#include <cute/numeric/math.hpp>

#include <softmax/ptx.cuh>
#include <softmax/row_parts.cuh>
#include <softmax/span.cuh>

// How the lanes that share a row divide its columns.
//
// A row is cut into vectors of Vec elements, dealt to the lanes in turn: lane l holds the vectors l, l + Lanes, ...
// ByWarp: each warp first gets Lanes * Chunks neighbouring vectors, dealt to its lanes in the same way, and a launch has as many
// warps as hold the row. Skips: for a warp that sees none of its columns the row ends at 0, before its first column.
// Nothing outside [0, K) is ever touched.

namespace softmax {

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

#pragma once

#include <cute/algorithm/clear.hpp>
#include <cute/tensor_impl.hpp>

#include <softmax/row_io.cuh>
#include <softmax/rows.cuh>

namespace softmax {

struct TileParams
{
  int32_t rows_per_cta;
  int32_t pitch;  // elements from one row to the next in shared memory
  int32_t flat;   // the rows of a CTA are one range of memory in every tensor, and in shared memory
};

// A row of k columns in shared memory, moved by `Access` elements at a time: by whole vectors if it starts on a vector boundary,
// else by words of 4 bytes, at which the vectors are cut. The columns beside the vectors are dealt to the lanes one by one.
//
//   | head | vector 0 | vector 1 | ... | vector n-1 | tail |
//   0      head < Access                            tail   k
//
// k is the same for all rows, and so is n: vectors beyond it are skipped by a warp-uniform branch. How many columns are visible
// may differ from row to row; that skips no further vectors.
template <int Vec_, int Lanes_, int Chunks_, int Access_>
struct TileRow
{
  static constexpr int Vec             = Vec_;
  static constexpr int Lanes           = Lanes_;
  static constexpr int Chunks          = Chunks_;
  static constexpr bool IsAligned      = Access_ == Vec;
  static constexpr int LongestHead     = IsAligned ? 0 : Access_ - 1;
  static constexpr int Edges           = IsAligned ? 0 : (LongestHead + Vec - 1 + Lanes - 1) / Lanes;
  static constexpr bool InSharedMemory = true;

  int lane;
  int k;
  int head;

  template <class Element>
  CUTE_DEVICE TileRow(int lane, Element const* row, int k) : lane(lane), k(k), head(head_of(row))
  {}

  template <class Element>
  CUTE_DEVICE static int head_of(Element const* row)
  {
    return reinterpret_cast<uintptr_t>(row) / sizeof(Element) % (LongestHead + 1);
  }

  // The first `visible` columns, and those beside them in a vector.
  CUTE_DEVICE int taken(int visible) const
  {
    return visible <= head ? visible : cute::min(head + (visible - head + Vec - 1) / Vec * Vec, k);
  }

  template <class End>
  CUTE_DEVICE bool reaches(int c, End /*end*/) const
  {
    return !kSkipsVectors<Vec> || LongestHead + Vec * (Lanes * c + 1) <= k;
  }

  template <class Element>
  CUTE_DEVICE static cute::bool_constant<IsAligned> is_aligned(Element const* /*operand*/)
  {
    return {};
  }

  CUTE_DEVICE auto vector(int c, int end) const
  {
    int const column = head + Vec * (lane + Lanes * c);
    if constexpr (IsAligned) {
      return Span<Vec>{column, end};
    } else {
      __builtin_assume(Lanes > 1 || column < k);  // of a vector that is reached: spares a test of each
      return Span<Vec, /*Streamed=*/false, sizeof(uint32_t)>{column, Lanes == 1 ? end : cute::min(end, tail())};
    }
  }

  // The lane's column number `edge` of head and tail together; at or beyond k where there is none.
  CUTE_DEVICE Span<1> edge(int edge, int end) const
  {
    int const i = lane + Lanes * edge;
    return {i < head ? i : tail() + (i - head), end};
  }

private:
  CUTE_DEVICE int tail() const { return head + (k - LongestHead) / Vec * Vec; }
};

// A tensor in global memory, and where its rows of a tile stand in shared memory.
template <class Element>
struct TileSource
{
  Element const* global;
  RowStrides const& strides;
  Element* sTile;  // (count,K)
};

// Moves the rows of a CTA between global and shared memory, where they lie one after the other.
//
// A flat range is copied like one unaligned row, at most `Vectors` vectors per thread: it stands in shared memory at the phase of
// its output, so that a vector is aligned in both. Other rows, unless a kernel takes OnlyRanges, are copied one by one, a few
// neighbouring threads to each: in vectors if they are aligned, else element by element. Each of them stands at the phase of its
// own output: where a row is cut, and so the order of its sum, does not depend on the rows beside it.
template <class Element, int Threads, int Vectors, class Row, bool OnlyRanges>
class TileCopy
{
public:
  CUTE_DEVICE TileCopy(
      Rows const& rows, TileParams const& tile, int first, int count, Element* output, RowStrides const& strides)
    : rows_(rows), tile_(tile), first_(first), count_(count), output_(output), strides_(strides)
  {}

  // The tile's first element in shared memory.
  CUTE_DEVICE Element* place(void* smem) const
  {
    Element* const sTile = static_cast<Element*>(smem);
    return is_range() ? sTile + reinterpret_cast<uintptr_t>(output_ + flat_offset()) / sizeof(Element) % Vec : sTile;
  }

  // How far row r begins after r times the pitch. The rows of a range have the phase of their output by themselves.
  CUTE_DEVICE int shift(int r) const
  {
    if (Row::LongestHead == 0 || is_range()) { return 0; }
    return Row::head_of(output_ + RowIndex(rows_, first_ + r).offset(strides_, rows_.rank));
  }

  // Every row of the tensors.
  template <class... Sources>
  CUTE_DEVICE void load(Sources const&... sources) const
  {
    if (is_range()) {
      load_range(every_part(), sources...);
    } else {
      load_rows([&](int /*r*/) { return k(); }, sources...);
    }
  }

  // Of row r the first visible(r) columns, and those beside them in the vectors in which lanes will take them. Of a range all
  // vectors with any of these. `all`: nothing is hidden anywhere.
  template <class Visible, class... Sources>
  CUTE_DEVICE void load_visible(Visible visible, bool all, Element* sTile, Sources const&... sources) const
  {
    auto const taken = [&](int r) { return Row(0, row(sTile, r), k()).taken(visible(r)); };
    if (is_range()) {
      load_range(all ? every_part() : parts_of(taken), sources...);
    } else {
      load_rows(taken, sources...);
    }
  }

  CUTE_DEVICE void store(Element* sTile /* (count,K) */) const
  {
    if (is_range()) {
      int const n = count_ * k();
      store_parts(range(n), n, sTile, output_ + flat_offset());
    } else {
      for_each_row([&](RowIndex const& index, int r, SeparateRow const& separate) {
        store_parts(separate, k(), row(sTile, r), output_ + index.offset(strides_, rows_.rank));
      });
    }
  }

private:
  static constexpr int Vec         = 16 / sizeof(Element);
  static constexpr int SeparateVec = Row::IsAligned ? Row::Vec : 1;
  static constexpr int Accesses    = Row::Vec * Row::Lanes * Row::Chunks / SeparateVec;  // of the longest row
  static constexpr int Lanes       = cute::max(Accesses / 4, cute::min(Accesses, 4));
  using Range                      = UnalignedRow<Vec, Threads, /*Chunks=*/Vectors>;
  using SeparateRow                = AlignedRow<SeparateVec, Lanes, Accesses / Lanes>;

  Rows const& rows_;
  TileParams const& tile_;
  int first_;
  int count_;
  Element* output_;
  RowStrides const& strides_;

  CUTE_DEVICE int k() const { return rows_.k; }
  CUTE_DEVICE bool is_range() const { return OnlyRanges || tile_.flat; }
  CUTE_DEVICE Element* row(Element* sTile, int r) const { return sTile + r * tile_.pitch + shift(r); }
  CUTE_DEVICE int64_t flat_offset() const { return int64_t(first_) * k(); }
  CUTE_DEVICE Range range(int n) const { return Range(threadIdx.x, output_ + flat_offset(), n); }

  // Bit c: the thread's part c of the range is to be copied; the edge column comes after the vectors.
  CUTE_DEVICE static constexpr uint32_t every_part() { return ~0u; }

  // Those with any of the first taken(r) columns of a row r.
  template <class Taken>
  CUTE_DEVICE uint32_t parts_of(Taken taken) const
  {
    int const n       = count_ * k();
    Range const range = this->range(n);
    uint32_t parts    = 0;
    CUTE_NO_UNROLL
    for (int c = 0; c <= Vectors; ++c) {
      int const begin = c < Vectors ? range.vector(c, n).column : range.edge(0, n).column;
      int const end   = cute::min(begin + (c < Vectors ? Vec : 1), n);
      CUTE_NO_UNROLL
      for (int r = begin / k(); r * k() < end; ++r) { parts |= uint32_t(cute::max(begin - r * k(), 0) < taken(r)) << c; }
    }
    return parts;
  }

  template <class... Sources>
  CUTE_DEVICE void load_range(uint32_t parts, Sources const&... sources) const
  {
    int const n       = count_ * k();
    Range const range = this->range(n);
    auto const seen   = [&](auto part) { return part.span(range, parts >> part.c & 1 ? n : 0); };
    load_parts_of(range, seen, n, {sources.global + flat_offset()...}, {sources.sTile...});
  }

  template <class Taken, class... Sources>
  CUTE_DEVICE void load_rows(Taken taken, Sources const&... sources) const
  {
    for_each_row([&](RowIndex const& index, int r, SeparateRow const& separate) {
      int const end   = taken(r);
      auto const seen = [&](auto part) { return part.span(separate, end); };
      load_parts_of(
          separate, seen, end, {sources.global + index.offset(sources.strides, rows_.rank)...}, {row(sources.sTile, r)...});
    });
  }

  // What is seen of the first n columns of N operands. All loads are issued before the first write to shared memory.
  template <class Copied, class Seen, int N>
  CUTE_DEVICE static void load_parts_of(
      Copied const& row, Seen seen, int n, Element const* const (&gX)[N] /* (n) */, Element* const (&sX)[N] /* (n) */)
  {
    decltype(make_row_fragment<Copied, Element>()) rX[N];
    CUTE_UNROLL
    for (int i = 0; i < N; ++i) { cute::clear(rX[i]); }
    cute::for_each(cute::make_tuple(Whole{}, ByElement{}), [&](auto how) {
      CUTE_UNROLL
      for (int i = 0; i < N; ++i) {
        load_parts(how, row, seen, gX[i], [&](auto part) { return part.of(rX[i]); });
      }
    });
    CUTE_UNROLL
    for (int i = 0; i < N; ++i) {
      for_each_part(row, n, [&](auto part) { part.span(row, n).store(sX[i], part.of(rX[i])); });
    }
  }

  template <class Copied>
  CUTE_DEVICE static void store_parts(Copied const& row, int n, Element const* sY /* (n) */, Element* gY /* (n) */)
  {
    auto rY = make_row_fragment<Copied, Element>();
    for_each_part(row, n, [&](auto part) { part.span(row, n).read(sY, part.of(rY)); });
    for_each_part(row, n, [&](auto part) { part.span(row, n).store(gY, part.of(rY)); });
  }

  template <class Body>
  CUTE_DEVICE void for_each_row(Body body) const
  {
    CUTE_NO_UNROLL
    for (int r = threadIdx.x / Lanes; r < count_; r += Threads / Lanes) {
      body(RowIndex(rows_, first_ + r), r, SeparateRow(threadIdx.x % Lanes, output_, k()));
    }
  }
};

}  // namespace softmax

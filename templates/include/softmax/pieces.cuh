#pragma once

#include <softmax/reduce.cuh>

// A row that no CTA holds is handled in pieces, each loaded and stored like a row of its own.

namespace softmax {

struct Piece
{
  int begin;  // its first column
  int size;   // columns
};

// Piece i of a row of k columns, cut at the vector boundary `columns` after the one before: only the first has columns before
// its first vector, only the last has some after its last one.
template <class Row, class Element>
CUTE_DEVICE Piece piece_of_row(Element const* output, int k, int i, int columns)
{
  auto const head = Row::head_of(output);
  int const begin = i == 0 ? 0 : cute::min(head + i * columns, k);
  return {begin, cute::min(head + (i + 1) * columns, k) - begin};
}

// The same of a row in `pieces` pieces, which ends with the last of them: that may be up to Vec - 1 columns longer, edges.
template <class Row, class Element>
CUTE_DEVICE Piece piece_of_row(Element const* output, int k, int i, int columns, int pieces)
{
  Piece const piece = piece_of_row<Row>(output, k, i, columns);
  if constexpr (Row::Edges == 0) {
    return piece;
  } else {
    return {piece.begin, i == pieces - 1 ? k - piece.begin : piece.size};
  }
}

// The first piece, of at most `pieces`, that may have a column from `begin` on.
template <int Vec>
CUTE_DEVICE int first_piece(int begin, int pieces, int columns)
{
  return cute::min(cute::max(begin - Vec, 0) / columns, pieces);
}

template <int Vec>
CUTE_DEVICE cute::_0 first_piece(cute::_0 /*begin*/, int /*pieces*/, int /*columns*/)
{
  return {};
}

// The pieces of a row have a CTA each; these communicate only through memory, from one launch to the next:
//
//                                         ctas     known        writes
//   a partial of every piece              pieces   0            false
//   of all of them one, if they are many  1        pieces       false     it takes the place of the first
//   the row                               pieces   1, pieces    true
template <class Partial>
struct SplitParams
{
  Partial* partials;  // (rows,pieces)
  int32_t pieces;     // of a row
  int32_t ctas;       // of a row
  int32_t known;      // partials of a row that are combined
  int32_t writes;
};

// A thread's share of the partials that are known of a row, added up in the same order in every CTA.
template <int Threads, class Partial>
CUTE_DEVICE Partial over_pieces(Partial const* gPartials /* (known) */, int known)
{
  Partial mine = Partial::nothing();
  CUTE_NO_UNROLL
  for (int i = threadIdx.x; i < known; i += Threads) { mine.add(gPartials[i]); }
  return mine;
}

}  // namespace softmax

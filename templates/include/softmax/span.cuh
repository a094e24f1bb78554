#pragma once

#include <cute/tensor_impl.hpp>

#include <softmax/ptx.cuh>

// How neighbouring columns of a row move between memory and registers. No access is wider than its address is aligned.

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

}  // namespace softmax

#pragma once

#include <cute/algorithm/fill.hpp>
#include <cute/tensor_impl.hpp>

#include <softmax/ptx.cuh>
#include <softmax/rows.cuh>
#include <softmax/scores.cuh>

namespace softmax {

// The bits of 1. Every type here has exactly one encoding of it: a comparison of bits is a comparison of values.
template <class Element>
struct One;

template <>
struct One<uint8_t>
{
  using Bits                  = uint8_t;
  static constexpr Bits value = 1;
};

template <>
struct One<cutlass::half_t>
{
  using Bits                  = uint16_t;
  static constexpr Bits value = 0x3c00;
};

template <>
struct One<cutlass::bfloat16_t>
{
  using Bits                  = uint16_t;
  static constexpr Bits value = 0x3f80;
};

template <>
struct One<float>
{
  using Bits                  = uint32_t;
  static constexpr Bits value = 0x3f800000;
};

// A mask in memory: an element that is exactly 1 hides its column, which then scores `fill` (-inf: it takes no part).
// The mask is broadcast by strides of 0; along the row by column_stride = 0, when one element hides or shows the whole row.
template <class Element, class Accumulator>
struct TensorMask : InertFeature
{
  using Bits = typename One<Element>::Bits;

  static constexpr uint32_t Field  = Bits(~Bits(0));
  static constexpr uint32_t Repeat = 0xffffffffu / Field;  // times an element: that element in every field of a register

  struct Params
  {
    Bits const* mask;
    Accumulator fill;
    int32_t column_stride;  // 1 or 0
    RowStrides strides;
  };

  // Whether a launch that may do without has one.
  CUTE_DEVICE static bool is_present(Params const& p) { return p.mask != nullptr; }

  // Vec mask elements, kept as 32-bit registers where they fill them.
  template <int Vec>
  struct Fragment
  {
    static constexpr bool Packed = Vec * sizeof(Bits) % sizeof(uint32_t) == 0;
    using Register               = cute::conditional_t<Packed, uint32_t, Bits>;
    static constexpr int PerRegister = sizeof(Register) / sizeof(Bits);

    cute::array_aligned<Register, Vec / PerRegister> registers;
  };

  Bits const* row;
  Accumulator hidden_score;
  bool per_column;
  uint32_t background;  // what the fragments hold where no element is loaded: that of the row, or 0

  CUTE_DEVICE TensorMask(Params const& p, Rows const& rows, RowIndex const& index)
    : row(p.mask + index.offset(p.strides, rows.rank)),
      hidden_score(p.fill),
      per_column(p.column_stride != 0),
      background(per_column ? 0 : *row * Repeat)
  {}

  CUTE_DEVICE TensorMask from(int column) const
  {
    TensorMask mask = *this;
    if (per_column) { mask.row += column; }
    return mask;
  }

  template <class How, class Row, class Seen, class Registers>
  CUTE_DEVICE void load(How how, Row const& scores, Seen seen, Registers fragment, bool wanted = true) const
  {
    using namespace cute;
    if constexpr (is_same_v<How, Whole>) {
      for_each_part(scores, kEveryColumn, [&](auto part) {
        using Register  = typename Fragment<part.Width>::Register;
        auto const span = seen(part);
        fill(fragment(part).registers, Register(span.column < span.end ? background : 0));
      });
    }
    auto const elements = [&](auto part) {
      return make_tensor(reinterpret_cast<Bits*>(fragment(part).registers.data()), Shape<Int<part.Width>>{});  // (V)
    };
    load_parts(how, scores, seen, row, elements, wanted && per_column);
  }

  template <class Span, int Vec, class ScoreVector>
  CUTE_DEVICE void apply(Span const&, Fragment<Vec> const& fragment, ScoreVector&& rZ /* (V) */) const
  {
    constexpr int PerRegister = Fragment<Vec>::PerRegister;
    CUTE_UNROLL
    for (int v = 0; v < Vec; ++v) {
      uint32_t const differs = ptx::opaque_xor(fragment.registers[v / PerRegister], One<Element>::value * Repeat);
      if ((differs & (Field << (v % PerRegister * 8 * sizeof(Bits)))) == 0) { rZ(v) = hidden_score; }
    }
  }
};

}  // namespace softmax

#pragma once

#include <cute/numeric/numeric_types.hpp>

// The project's inline PTX. A cluster's barrier and the addresses of its CTAs' shared memory come from CuTe.

namespace softmax::ptx {

// Of shuffles in which every lane of the warp takes part.
constexpr uint32_t kFullMask = 0xffffffffu;

// The word at an address of global memory where it is wanted; elsewhere `value` stays. A predicate in place of a branch: around
// branches ptxas moves a load behind the use of the one before it, and their latencies add up. Without a "memory" clobber, so
// that loads may be reordered. A result may overwrite what was loaded: the thread that stores to an address is the one that
// loaded it, so program order holds.
CUTE_DEVICE void load_if(bool wanted, uint4 const* address, uint4& value)
{
  asm volatile("{.reg .pred p; setp.ne.u32 p, %5, 0; @p ld.global.v4.u32 {%0, %1, %2, %3}, [%4];}"
               : "+r"(value.x), "+r"(value.y), "+r"(value.z), "+r"(value.w)
               : "l"(__cvta_generic_to_global(address)), "r"(uint32_t(wanted)));
}

CUTE_DEVICE void load_if(bool wanted, uint2 const* address, uint2& value)
{
  asm volatile("{.reg .pred p; setp.ne.u32 p, %3, 0; @p ld.global.v2.u32 {%0, %1}, [%2];}"
               : "+r"(value.x), "+r"(value.y)
               : "l"(__cvta_generic_to_global(address)), "r"(uint32_t(wanted)));
}

CUTE_DEVICE void load_if(bool wanted, uint32_t const* address, uint32_t& value)
{
  asm volatile("{.reg .pred p; setp.ne.u32 p, %2, 0; @p ld.global.u32 %0, [%1];}"
               : "+r"(value) : "l"(__cvta_generic_to_global(address)), "r"(uint32_t(wanted)));
}

CUTE_DEVICE void load_if(bool wanted, uint16_t const* address, uint32_t& value)
{
  asm volatile("{.reg .pred p; setp.ne.u32 p, %2, 0; @p ld.global.u16 %0, [%1];}"
               : "+r"(value) : "l"(__cvta_generic_to_global(address)), "r"(uint32_t(wanted)));
}

CUTE_DEVICE void load_if(bool wanted, uint8_t const* address, uint32_t& value)
{
  asm volatile("{.reg .pred p; setp.ne.u32 p, %2, 0; @p ld.global.u8 %0, [%1];}"
               : "+r"(value) : "l"(__cvta_generic_to_global(address)), "r"(uint32_t(wanted)));
}

template <class Word>
CUTE_DEVICE void load_if(bool wanted, Word const* address, Word& value)
{
  uint32_t wide = value;
  load_if(wanted, address, wide);
  value = Word(wide);
}

// Initialises an mbarrier for one phase, which completes when `bytes` have come by store_async. Other threads may use it after a
// cluster barrier at which this thread arrives after this call. Bytes may be counted (complete_tx) before they are expected
// (expect_tx): the arrival that is pending until then keeps the phase open. Addresses are those of shared memory.
CUTE_DEVICE void init_expecting(uint32_t mbarrier, uint32_t bytes)
{
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;\n\t"
               "fence.mbarrier_init.release.cluster;\n\t"
               "mbarrier.arrive.expect_tx.relaxed.cluster.shared::cta.b64 _, [%0], %1;"
               : : "r"(mbarrier), "r"(bytes) : "memory");
}

// Whether the phase is complete: what was stored by then may be read. It may suspend the thread for a while before it returns
// false.
CUTE_DEVICE bool try_wait(uint32_t mbarrier)
{
  uint32_t complete;
  asm volatile("{.reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], 0; selp.u32 %0, 1, 0, p;}"
               : "=r"(complete) : "r"(mbarrier) : "memory");
  return complete;
}

// Stores to shared memory of a CTA of the cluster; an mbarrier of the same CTA counts the bytes.
CUTE_DEVICE void store_async(uint32_t address, uint32_t value, uint32_t mbarrier)
{
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];"
               : : "r"(address), "r"(value), "r"(mbarrier) : "memory");
}

CUTE_DEVICE void store_async(uint32_t address, uint2 value, uint32_t mbarrier)
{
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];"
               : : "r"(address), "r"(value.x), "r"(value.y), "r"(mbarrier) : "memory");
}

CUTE_DEVICE void store_async(uint32_t address, uint4 value, uint32_t mbarrier)
{
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];"
               : : "r"(address), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w), "r"(mbarrier) : "memory");
}

// 2^x with a relative error of at most 2^-22.5; subnormal results flush to zero.
CUTE_DEVICE float ex2(float x)
{
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// log2(x) with an absolute error of at most 2^-22 around 1, elsewhere a relative one; subnormal x is supported.
CUTE_DEVICE float lg2(float x)
{
  float y;
  asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 / x with a relative error of at most 2^-23, for normal x.
CUTE_DEVICE float rcp(float x)
{
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two 16-bit elements of one register as f32, both exact.
template <class Element>
CUTE_DEVICE float2 unpack(uint32_t pair);

template <>
CUTE_DEVICE float2 unpack<cutlass::half_t>(uint32_t pair)
{
  float2 f;
  asm("{.reg .f16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high;}"
      : "=f"(f.x), "=f"(f.y) : "r"(pair));
  return f;
}

template <>
CUTE_DEVICE float2 unpack<cutlass::bfloat16_t>(uint32_t pair)
{
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
}

// The reverse, rounded to nearest even.
template <class Element>
CUTE_DEVICE uint32_t pack(float low, float high);

template <>
CUTE_DEVICE uint32_t pack<cutlass::half_t>(float low, float high)
{
  __half2 const pair = __floats2half2_rn(low, high);
  return reinterpret_cast<uint32_t const&>(pair);
}

template <>
CUTE_DEVICE uint32_t pack<cutlass::bfloat16_t>(float low, float high)
{
  __nv_bfloat162 const pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<uint32_t const&>(pair);
}

// The low halves of two registers in one, and the low bytes of four.
CUTE_DEVICE uint32_t join(uint16_t const* /*of*/, uint32_t const* each) { return __byte_perm(each[0], each[1], 0x5410); }
CUTE_DEVICE uint32_t join(uint8_t const* /*of*/, uint32_t const* each)
{
  return __byte_perm(__byte_perm(each[0], each[1], 0x0040), __byte_perm(each[2], each[3], 0x0040), 0x5410);
}

// a b + c in one instruction. LLVM sign-extends an index where it is defined, and ptxas would then emit a 64 x 64-bit multiply.
CUTE_DEVICE int64_t multiply_add_wide(int32_t a, int32_t b, int64_t c)
{
  int64_t d;
  asm("mad.wide.s32 %0, %1, %2, %3;" : "=l"(d) : "r"(a), "r"(b), "l"(c));
  return d;
}

// a ^ b, hidden from the optimiser: it would fold the xor into the comparison of every field of the register, which then
// takes two instructions instead of one.
CUTE_DEVICE uint32_t opaque_xor(uint32_t a, uint32_t b)
{
  uint32_t c;
  asm("xor.b32 %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b));
  return c;
}

}  // namespace softmax::ptx

#pragma once

#include <cute/arch/cluster_sm90.hpp>
#include <cute/arch/util.hpp>

#include <softmax/reduce.cuh>
#include <softmax/row_io.cuh>

// Partials of a row that the CTAs of a thread block cluster share, exchanged through distributed shared memory.
//
// Rank and size come from CUDA's intrinsics: cute's functions are volatile, and their results, kept in registers, make a kernel spill.

namespace softmax {

struct ClusterParams
{
  int32_t columns;  // of a row for each CTA
  int32_t shift;    // from the number of a CTA to that of its cluster, which has 2^shift CTAs
};

// Where the partials of all the cluster's CTAs arrive; every CTA has one.
template <class Partial, int MaxWarps, int MaxCtas>
struct Inbox
{
  uint64_t full;  // mbarrier
  Partial of_ctas[MaxCtas];
  Partial of_warps[MaxWarps];  // of the CTA itself
};

// Another CTA's inbox may be written once that CTA runs and expects it: open arrives at the cluster's barrier, await_cluster waits
// there, some time before over_cluster. Directly behind loads it keeps them together: ptxas moves no use of one ahead of another.
// (The last thread opens the inbox: with the first, ptxas moves loads of the general backward apart.)
template <class Partial, int MaxWarps, int MaxCtas>
CUTE_DEVICE void open(Inbox<Partial, MaxWarps, MaxCtas>& sInbox)
{
  uint32_t const bytes = __clusterSizeInBlocks() * sizeof(Partial);
  if (threadIdx.x == blockDim.x - 1) { ptx::init_expecting(cute::cast_smem_ptr_to_uint(&sInbox.full), bytes); }
  cute::cluster_arrive_relaxed();
}

CUTE_DEVICE void await_cluster() { cute::cluster_wait(); }

// One partial per warp becomes that of the whole cluster, in every thread. Each CTA hands its partial to every CTA.
//
// The stores are counted where they arrive, so no fence holds up the CTA that sends, and a CTA waits for its own inbox only.
// Once its inbox is full no CTA writes to it again, so each may exit independently.
template <class Partial, int MaxWarps, int MaxCtas>
CUTE_DEVICE Partial over_cluster(Partial warp, Inbox<Partial, MaxWarps, MaxCtas>& sInbox)
{
  using Word = WordOf<Partial, 1>;

  int const ctas      = __clusterSizeInBlocks();
  uint32_t const full = cute::cast_smem_ptr_to_uint(&sInbox.full);
  Partial const cta   = over_warps<MaxWarps>(warp, sInbox.of_warps, int(blockDim.x / 32));

  if (threadIdx.x < ctas) {
    uint32_t const slot  = cute::cast_smem_ptr_to_uint(&sInbox.of_ctas[__clusterRelativeBlockRank()]);
    uint32_t const there = cute::set_block_rank(slot, threadIdx.x);
    ptx::store_async(there, reinterpret_cast<Word const&>(cta), cute::set_block_rank(full, threadIdx.x));
  }
  while (!ptx::try_wait(full)) {}
  return over_partials<MaxCtas>(sInbox.of_ctas, ctas);
}

}  // namespace softmax

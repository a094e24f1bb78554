#pragma once

#include <cute/arch/cluster_sm90.hpp>

#include <softmax/reduce.cuh>
#include <softmax/row_io.cuh>

// Partials of a row that the CTAs of a thread block cluster share, exchanged through distributed shared memory.

namespace softmax {

struct ClusterParams
{
  int32_t columns;  // of a row for each CTA
};

// Where the partials of all the cluster's warps arrive; every CTA has one.
template <class Partial, int MaxPartials>
struct Inbox
{
  uint64_t full;  // mbarrier
  Partial partials[MaxPartials];
};

// Another CTA's inbox may be written once that CTA runs and expects it: here it arrives at the cluster's barrier, and
// over_cluster waits. (The last thread opens it: with the first, ptxas moves loads of the general backward apart.)
template <class Partial, int MaxPartials>
CUTE_DEVICE void open(Inbox<Partial, MaxPartials>& sInbox)
{
  uint32_t const partials = blockDim.x / 32 * __clusterSizeInBlocks();
  if (threadIdx.x == blockDim.x - 1) { ptx::expect_bytes(cute::cast_smem_ptr_to_uint(&sInbox.full), partials * sizeof(Partial)); }
  cute::cluster_arrive_relaxed();
}

// One partial per warp becomes that of the whole cluster, in every thread. Each warp hands its partial to every CTA.
//
// The stores are counted where they arrive, so no fence holds up the CTA that sends, and a CTA waits for its own inbox only.
// Once its inbox is full no CTA writes to it again, so each may exit independently.
template <class Partial, int MaxPartials>
CUTE_DEVICE Partial over_cluster(Partial warp, Inbox<Partial, MaxPartials>& sInbox)
{
  using Word = Access<Partial, 1>;

  int const lane      = threadIdx.x % 32;
  int const warps     = blockDim.x / 32;
  int const ctas      = __clusterSizeInBlocks();
  int const slot      = __clusterRelativeBlockRank() * warps + threadIdx.x / 32;
  uint32_t const full = cute::cast_smem_ptr_to_uint(&sInbox.full);

  cute::cluster_wait();
  if (lane < ctas) {
    uint32_t const there = cute::set_block_rank(cute::cast_smem_ptr_to_uint(&sInbox.partials[slot]), lane);
    ptx::store_async(there, reinterpret_cast<Word const&>(warp), cute::set_block_rank(full, lane));
  }
  while (!ptx::try_wait(full)) {}

  Partial all = Partial::nothing();
  CUTE_NO_UNROLL
  for (int i = lane; i < warps * ctas; i += 32) { all.add(sInbox.partials[i]); }
  return all.template over_lanes<32>();
}

}  // namespace softmax

/* What a warp does about its launch: registers moved between warpgroups, and programmatic launch
 * (the step's is_programmatic). */
#ifndef QN_CUDA_LAUNCH_CUH
#define QN_CUDA_LAUNCH_CUH

/* By all warps of a warpgroup, sm_90a and up: registers per thread from now on, 24 to 256 in steps
 * of 8. Needs __launch_bounds__ with its second argument; the sum over the block may not exceed
 * what it was launched with, and an increase waits until it fits. */
template <int registers> __device__ __forceinline__ void registers_raise(void)
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}

template <int registers> __device__ __forceinline__ void registers_lower(void)
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}

/* Everything that kernels ahead in the stream wrote is visible after this; by every thread that
 * reads it, or before a barrier that such threads pass. Returns at once in an ordinary launch. */
__device__ __forceinline__ void launch_wait(void)
{
    asm volatile("griddepcontrol.wait;" ::: "memory");
}

/* The next kernel may start; it says nothing about what this one has written. */
__device__ __forceinline__ void launch_dependents(void)
{
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}
#endif

/* Lacks what the kernel asks of every congestion control. */
#include "../samples/cc.h"

SEC("struct_ops/incomplete_ssthresh")
int incomplete_ssthresh(u64 *ctx) { return NO_SSTHRESH; }

SEC(".struct_ops.link")
struct tcp_congestion_ops incomplete = {
	.name = "incomplete",
	.ssthresh = (void *)incomplete_ssthresh,
};

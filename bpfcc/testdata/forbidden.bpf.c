/* Writes what a congestion control may only read: the verifier's business. */
#include "../samples/cc.h"

SEC("struct_ops/forbidden_ssthresh")
int forbidden_ssthresh(u64 *ctx)
{
	struct tcp_sock *tp = (void *)ctx[0];

	tp->mss_cache = 1;
	return NO_SSTHRESH;
}

SEC("struct_ops/forbidden_avoid")
int forbidden_avoid(u64 *ctx) { return 0; }

SEC("struct_ops/forbidden_undo")
int forbidden_undo(u64 *ctx) { return 10; }

SEC(".struct_ops.link")
struct tcp_congestion_ops forbidden = {
	.name = "forbidden",
	.cong_avoid = (void *)forbidden_avoid,
	.ssthresh = (void *)forbidden_ssthresh,
	.undo_cwnd = (void *)forbidden_undo,
};

/* Closes the window for good: the verifier can't know. */
#include "../samples/cc.h"

SEC("struct_ops/zero_avoid")
int zero_avoid(u64 *ctx)
{
	struct tcp_sock *tp = (void *)ctx[0];

	tp->snd_cwnd = 0;
	return 0;
}

SEC("struct_ops/zero_init")
int zero_init(u64 *ctx) { return zero_avoid(ctx); }

SEC("struct_ops/zero_ssthresh")
int zero_ssthresh(u64 *ctx) { return 2; }

SEC("struct_ops/zero_undo")
int zero_undo(u64 *ctx) { return 0; }

SEC(".struct_ops.link")
struct tcp_congestion_ops zero = {
	.name = "zero",
	.init = (void *)zero_init,
	.cong_avoid = (void *)zero_avoid,
	.ssthresh = (void *)zero_ssthresh,
	.undo_cwnd = (void *)zero_undo,
};

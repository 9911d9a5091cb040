/* Paces its connection at a byte per second: the verifier can't know. */
#include "../samples/cc.h"

SEC("struct_ops/stall_init")
int stall_init(u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];

	sk->sk_pacing_status = PACING_NEEDED;
	sk->sk_pacing_rate = 1;
	return 0;
}

SEC("struct_ops/stall_control")
int stall_control(u64 *ctx) { return stall_init(ctx); }

SEC("struct_ops/stall_ssthresh")
int stall_ssthresh(u64 *ctx) { return NO_SSTHRESH; }

SEC("struct_ops/stall_undo")
int stall_undo(u64 *ctx) { return 10; }

SEC(".struct_ops.link")
struct tcp_congestion_ops stall = {
	.name = "stall",
	.init = (void *)stall_init,
	.cong_control = (void *)stall_control,
	.ssthresh = (void *)stall_ssthresh,
	.undo_cwnd = (void *)stall_undo,
};

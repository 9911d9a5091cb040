/*
 * What a congestion control in eBPF needs of Linux, so that no kernel header is
 * needed: the members that are used, of the structures that have them. Their
 * order and place here mean nothing: the loader finds them in the running
 * kernel by their names (CO-RE).
 */
#ifndef CC_H
#define CC_H

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int s32;
typedef _Bool bool;

#define SEC(name) __attribute__((section(name), used))
#define KFUNC extern __attribute__((section(".ksyms")))

#define NO_SSTHRESH 0x7fffffff
#define PACING_NEEDED 1 /* enum sk_pacing */

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct sock {
	u32 sk_pacing_status;
	unsigned long sk_pacing_rate; /* bytes per second */
	unsigned long sk_max_pacing_rate;
};

struct inet_connection_sock {
	u64 icsk_ca_priv[13]; /* the congestion control's own */
};

struct tcp_sock {
	u32 snd_cwnd; /* segments, as all windows */
	u32 snd_ssthresh;
	u32 max_packets_out;
	u32 mss_cache;
	u64 tcp_mstamp; /* now, in microseconds */
};

struct rate_sample {
	s32 delivered;    /* segments; negative: not known */
	long interval_us; /* in which they were; negative: not known */
	long rtt_us;      /* negative: not measured */
	bool is_app_limited;
};

struct tcp_congestion_ops {
	char name[16];
	u32 flags;
	u32 (*ssthresh)(struct sock *sk);
	void (*cong_avoid)(struct sock *sk, u32 ack, u32 acked);
	void (*cong_control)(struct sock *sk, u32 ack, int flag, const struct rate_sample *rs);
	u32 (*undo_cwnd)(struct sock *sk);
	void (*init)(struct sock *sk);
};

#pragma clang attribute pop

char LICENSE[] SEC("license") = "GPL"; /* else the verifier lets no struct_ops pass */

#endif

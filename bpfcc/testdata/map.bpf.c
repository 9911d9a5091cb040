/* Brings a map of its own, by which it could hold memory of the kernel. */
#include "../samples/cc.h"

struct {
	int (*type)[1]; /* BPF_MAP_TYPE_HASH */
	int (*max_entries)[1000000];
	u32 *key;
	u64 *value;
} table SEC(".maps");

static void *(*map_lookup)(void *map, const void *key) = (void *)1;

SEC("struct_ops/map_ssthresh")
int map_ssthresh(u64 *ctx)
{
	u32 key = 1;

	return map_lookup(&table, &key) ? 2 : NO_SSTHRESH;
}

SEC("struct_ops/map_avoid")
int map_avoid(u64 *ctx) { return 0; }

SEC("struct_ops/map_undo")
int map_undo(u64 *ctx) { return 10; }

SEC(".struct_ops.link")
struct tcp_congestion_ops map = {
	.name = "map",
	.cong_avoid = (void *)map_avoid,
	.ssthresh = (void *)map_ssthresh,
	.undo_cwnd = (void *)map_undo,
};

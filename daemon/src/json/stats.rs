//! `GET /containers/{id}/stats`: `usage` of the engine in docker's shape.

use baleen_engine::{BlockUsage, ContainerStats, Usage};
use serde_json::{Map, Value, json};

/// One object, from a moment and the one before it.
pub(crate) fn stats(now: &ContainerStats, before: Option<&ContainerStats>) -> Value {
    let Some(usage) = &now.usage else {
        // What does not run uses nothing: docker's clients show zeros for it.
        return json!({
            "name": format!("/{}", now.name), "id": now.id, "read": ZERO_TIME, "preread": ZERO_TIME,
            "pids_stats": {}, "blkio_stats": block(None), "num_procs": 0, "storage_stats": {},
            "cpu_stats": cpu(None), "precpu_stats": cpu(None), "memory_stats": {},
        });
    };
    let before = before.filter(|before| before.usage.is_some());
    let mut object = json!({
        "name": format!("/{}", now.name),
        "id": now.id,
        "read": now.read.to_rfc3339_fixed(),
        "preread": before.map_or_else(|| ZERO_TIME.to_owned(), |before| before.read.to_rfc3339_fixed()),
        "pids_stats": present([("current", usage.pids), ("limit", usage.pids_limit)]),
        "blkio_stats": block(Some(usage)),
        "num_procs": 0,
        "storage_stats": {},
        "cpu_stats": cpu(Some(now)),
        "precpu_stats": cpu(before),
        "memory_stats": memory(now, usage),
    });
    if let Some(networks) = &usage.networks {
        let one = |counts: &baleen_engine::NetworkUsage| {
            json!({
                "rx_bytes": counts.rx_bytes, "rx_packets": counts.rx_packets,
                "rx_errors": counts.rx_errors, "rx_dropped": counts.rx_dropped,
                "tx_bytes": counts.tx_bytes, "tx_packets": counts.tx_packets,
                "tx_errors": counts.tx_errors, "tx_dropped": counts.tx_dropped,
            })
        };
        let networks: Map<String, Value> = networks.iter().map(|(name, counts)| (name.clone(), one(counts))).collect();
        object["networks"] = Value::Object(networks);
    }
    object
}

const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

fn present<const N: usize>(fields: [(&str, Option<u64>); N]) -> Value {
    let known = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), json!(value?))));
    Value::Object(known.collect())
}

fn cpu(moment: Option<&ContainerStats>) -> Value {
    let Some((moment, usage)) = moment.and_then(|moment| Some((moment, moment.usage.as_ref()?))) else {
        return json!({
            "cpu_usage": { "total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0 },
            "throttling_data": { "periods": 0, "throttled_periods": 0, "throttled_time": 0 },
        });
    };
    let cpu = &usage.cpu;
    let mut object = json!({
        "cpu_usage": { "total_usage": cpu.total, "usage_in_kernelmode": cpu.kernel, "usage_in_usermode": cpu.user },
        "system_cpu_usage": moment.machine.total,
        "online_cpus": moment.machine.processors,
        "throttling_data": {
            "periods": cpu.periods, "throttled_periods": cpu.throttled_periods, "throttled_time": cpu.throttled,
        },
    });
    if let Some(processors) = &cpu.by_processor {
        object["cpu_usage"]["percpu_usage"] = json!(processors);
    }
    object
}

fn memory(now: &ContainerStats, usage: &Usage) -> Value {
    let memory = &usage.memory;
    let mut object = present([
        ("usage", memory.used),
        ("max_usage", memory.peak.filter(|_| !usage.unified)),
        ("failcnt", memory.failures),
        (
            "limit",
            memory
                .used
                .map(|_| memory.limit.map_or(now.machine_memory_bytes, |limit| limit.min(now.machine_memory_bytes))),
        ),
    ]);
    object["stats"] = json!(memory.details);
    object
}

fn block(usage: Option<&Usage>) -> Value {
    let list = |list: &[BlockUsage]| -> Value {
        list.iter()
            .map(|one| json!({ "major": one.major, "minor": one.minor, "op": one.operation, "value": one.value }))
            .collect()
    };
    let (bytes, operations) = match usage {
        Some(usage) => (list(&usage.block_bytes), list(&usage.block_operations)),
        None => (Value::Null, Value::Null),
    };
    let empty = if usage.is_some_and(|usage| !usage.unified) { json!([]) } else { Value::Null };
    json!({
        "io_service_bytes_recursive": bytes, "io_serviced_recursive": operations,
        "io_queue_recursive": empty, "io_service_time_recursive": empty, "io_wait_time_recursive": empty,
        "io_merged_recursive": empty, "io_time_recursive": empty, "sectors_recursive": empty,
    })
}

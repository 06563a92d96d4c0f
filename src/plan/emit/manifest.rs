//! Kubernetes manifests: Deployment or `LeaderWorkerSet` with a Service, and Dynamo's deployment request.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::command::{Command, Node, PORT};
use super::{Engine, Launch, Role, yaml};
use crate::plan::size::Metric;
use crate::units::nearest_whole;
use crate::{Error, Result};

/// Longest name of an object: room is left for what controllers append.
const NAME: usize = 40;
/// Seconds between two looks at a server that starts, and how many of them.
const STARTUP: (usize, usize) = (10, 360);
/// Devices that Dynamo's request knows by name (`spec.hardware.gpuSku` of v1beta1); the word of ours, and
/// of theirs where it differs.
const DYNAMO_DEVICES: [(&str, &str); 10] = [
    ("gb200", "gb200"),
    ("b300_sxm", "b300_sxm"),
    ("b200_sxm", "b200_sxm"),
    ("h200_sxm", "h200_sxm"),
    ("h100_sxm", "h100_sxm"),
    ("h100_pcie", "h100_pcie"),
    ("a100_sxm", "a100_sxm"),
    ("a100_pcie", "a100_pcie"),
    ("l40s", "l40s"),
    ("mi300x", "mi300"),
];

/// Manifests of every role, as one YAML stream.
///
/// # Errors
/// [`Error::Unfit`] where an engine cannot be told the layout or started on several hosts this way, or no
/// image of it is known for the device.
pub fn kubernetes(launch: &Launch) -> Result<String> {
    let mut text = comments(launch);
    for role in &launch.roles {
        for object in objects(launch, role)? {
            text += "---\n";
            text += &yaml::document(&object);
        }
    }
    Ok(text)
}

/// Dynamo's `DynamoGraphDeploymentRequest` with the model, devices, load and service level that were priced.
/// Dynamo searches the layout itself; the one priced here is in the comments.
///
/// # Errors
/// [`Error::Unfit`] for a device that the request cannot name.
pub fn dynamo(launch: &Launch) -> Result<String> {
    let device = &launch.device;
    let known = DYNAMO_DEVICES.iter().find(|(ours, _)| *ours == device.short_name);
    let Some((_, sku)) = known else {
        let names = DYNAMO_DEVICES.map(|(ours, _)| ours).join(", ");
        let reason = format!("Dynamo's request names {names}; use --emit k8s");
        return Err(Error::unfit(format!("--emit dgdr on {}", device.name), reason));
    };
    let most = |metric: Metric| {
        let limits = launch.limits.iter().filter(|l| l.metric == metric);
        limits.map(|l| l.most.as_ms()).min_by(f64::total_cmp)
    };
    let mut sla = Map::new();
    for (name, metric) in [("ttft", Metric::Ttft), ("itl", Metric::Tpot)] {
        if let Some(ms) = most(metric) {
            sla.insert(name.into(), json!(rounded(ms)));
        }
    }
    let devices: usize = launch.roles.iter().map(|r| r.replicas * r.layout.devices()).sum();
    let request = json!({
        "apiVersion": "nvidia.com/v1beta1",
        "kind": "DynamoGraphDeploymentRequest",
        "metadata": { "name": name(launch, "request") },
        "spec": {
            "model": launch.model,
            "backend": launch.engine.label(),
            "hardware": {
                "gpuSku": sku,
                "totalGpus": devices,
                "numGpusPerNode": device.per_host,
            },
            "workload": {
                "isl": nearest_whole(launch.lengths.input).max(1),
                "osl": nearest_whole(launch.lengths.output).max(1),
                "requestRate": launch.rate,
            },
            "sla": sla,
            "searchStrategy": "rapid",
            "autoApply": false,
        },
    });
    let mut text = comments(launch);
    if launch.weights != launch.published {
        let weights = launch.weights.label();
        let _ = writeln!(text, "# priced with {weights} weights: name a checkpoint in that format");
    }
    Ok(text + &yaml::document(&request))
}

fn comments(launch: &Launch) -> String {
    let lines = launch.heading().into_iter().chain(launch.notes());
    lines.flat_map(|line| ["# ".to_owned(), line, "\n".to_owned()]).collect()
}

/// The workload of a role and the Service before it.
fn objects(launch: &Launch, role: &Role) -> Result<[Value; 2]> {
    let name = name(launch, role.name);
    let several = role.hosts(&launch.device) > 1;
    let workload = if several {
        leader_worker_set(launch, role, &name)?
    } else {
        let pod = pod(launch, role, &launch.command_on(role, None)?, true)?;
        let labels = json!({ "app": name });
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": { "name": name, "labels": labels },
            "spec": {
                "replicas": role.replicas,
                "selector": { "matchLabels": labels },
                "template": { "metadata": { "labels": labels }, "spec": pod },
            },
        })
    };
    let selector = if several {
        json!({ "leaderworkerset.sigs.k8s.io/name": name, "role": "leader" })
    } else {
        json!({ "app": name })
    };
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name },
        "spec": {
            "selector": selector,
            "ports": [{ "name": "http", "protocol": "TCP", "port": PORT, "targetPort": PORT }],
        },
    });
    Ok([workload, service])
}

fn leader_worker_set(launch: &Launch, role: &Role, name: &str) -> Result<Value> {
    if launch.engine == Engine::Trtllm {
        let what = format!("--emit k8s of {} on several hosts", launch.engine.name());
        let reason = "its ranks are started by MPI; --emit trtllm prints the command";
        return Err(Error::unfit(what, reason));
    }
    let local = role.devices_per_host(&launch.device) / role.layout.attention_tp.max(1);
    let node = |is_leader| Node {
        leader: "$LWS_LEADER_ADDRESS".into(),
        rank: "$LWS_WORKER_INDEX".into(),
        first_rank: format!("$((LWS_WORKER_INDEX * {local}))"),
        is_leader,
    };
    let pod_of = |is_leader| -> Result<Value> {
        pod(launch, role, &launch.command_on(role, Some(&node(is_leader)))?, is_leader)
    };
    Ok(json!({
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": { "name": name },
        "spec": {
            "replicas": role.replicas,
            "leaderWorkerTemplate": {
                "size": role.hosts(&launch.device),
                "restartPolicy": "RecreateGroupOnPodRestart",
                "leaderTemplate": {
                    "metadata": { "labels": { "role": "leader" } },
                    "spec": pod_of(true)?,
                },
                "workerTemplate": { "spec": pod_of(false)? },
            },
        },
    }))
}

fn pod(launch: &Launch, role: &Role, command: &Command, answers: bool) -> Result<Value> {
    let plain = command.options_file.is_none() && role.hosts(&launch.device) == 1;
    let words = if plain { json!(command.words()) } else { json!(["sh", "-c", exec(command)]) };
    let mut container = json!({
        "name": launch.engine.label(),
        "image": image(launch)?,
        "command": words,
        "env": [{
            "name": "HF_TOKEN",
            "valueFrom": { "secretKeyRef": { "name": "hf-token", "key": "token", "optional": true } },
        }],
        "resources": { "limits": { "nvidia.com/gpu": role.devices_per_host(&launch.device) } },
        "volumeMounts": [{ "name": "shm", "mountPath": "/dev/shm" }],
    });
    if answers {
        let health = json!({ "path": "/health", "port": PORT });
        let (period, failures) = STARTUP;
        container["ports"] = json!([{ "name": "http", "containerPort": PORT }]);
        container["startupProbe"] =
            json!({ "httpGet": health, "periodSeconds": period, "failureThreshold": failures });
        container["readinessProbe"] = json!({ "httpGet": health, "periodSeconds": period });
    }
    Ok(json!({
        "containers": [container],
        "volumes": [{ "name": "shm", "emptyDir": { "medium": "Memory" } }],
    }))
}

/// Lines of shell whose last command takes the shell's place, so that signals reach the server.
fn exec(command: &Command) -> String {
    let program = command.program[0].as_str();
    command.script().replacen(&format!("{program} "), &format!("exec {program} "), 1)
}

fn image(launch: &Launch) -> Result<String> {
    if launch.device.short_name.starts_with("mi") {
        let what = format!("--emit k8s on {}", launch.device.name);
        let reason =
            format!("no image is known; --emit {} prints the command", launch.engine.label());
        return Err(Error::unfit(what, reason));
    }
    let version = launch.version();
    Ok(match launch.engine {
        Engine::Vllm => format!("vllm/vllm-openai:v{version}"),
        Engine::Sglang => format!("lmsysorg/sglang:v{version}"),
        Engine::Trtllm => format!("nvcr.io/nvidia/tensorrt-llm/release:{version}"),
    })
}

/// Name of an object: lower-case letters, digits and dashes, with a letter first.
fn name(launch: &Launch, role: &str) -> String {
    let model = launch.model_name.to_lowercase();
    let mut clean = String::new();
    for c in model.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }) {
        if !(c == '-' && (clean.is_empty() || clean.ends_with('-'))) {
            clean.push(c);
        }
    }
    clean.truncate(NAME);
    let clean = clean.trim_end_matches('-');
    let start = if clean.starts_with(|c: char| c.is_ascii_lowercase()) { "" } else { "m-" };
    format!("{start}{clean}-{role}")
}

/// Milliseconds to a thousandth.
fn rounded(ms: f64) -> f64 {
    (ms * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::super::testing::launch;
    use super::*;
    use crate::serving::Layout;

    #[test]
    fn one_host_is_a_deployment_and_several_a_leader_worker_set() {
        let text = kubernetes(&launch(Engine::Vllm, Layout::tensor(2))).unwrap();
        for part in [
            "kind: Deployment\n",
            "name: mixtral-8x7b-serve\n",
            "replicas: 3\n",
            "nvidia.com/gpu: 2\n",
            "image: \"vllm/vllm-openai:v1.2.3\"\n",
            "kind: Service\n",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let text = kubernetes(&launch(Engine::Vllm, Layout::data_expert(16))).unwrap();
        for part in ["kind: LeaderWorkerSet\n", "size: 2\n", "nvidia.com/gpu: 8\n"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(
            text.contains("$((LWS_WORKER_INDEX * 8))") && text.contains("--headless"),
            "{text}"
        );
    }

    #[test]
    fn what_cannot_be_started_is_refused() {
        let error = kubernetes(&launch(Engine::Trtllm, Layout::tensor(16))).unwrap_err();
        assert!(error.to_string().contains("MPI"), "{error}");
        let mut amd = launch(Engine::Vllm, Layout::tensor(2));
        amd.device.short_name = "mi300x".into();
        assert_eq!(kubernetes(&amd).unwrap_err().exit_code(), 4);
        amd.device.short_name = "h20".into();
        assert!(dynamo(&amd).unwrap_err().to_string().contains("h100_sxm"));
    }

    #[test]
    fn the_request_to_dynamo_holds_load_devices_and_limits() {
        let text = dynamo(&launch(Engine::Sglang, Layout::tensor(4))).unwrap();
        for part in [
            "kind: DynamoGraphDeploymentRequest\n",
            "model: mistralai/Mixtral-8x7B-v0.1\n",
            "backend: sglang\n",
            "gpuSku: h100_sxm\n",
            "totalGpus: 12\n",
            "requestRate: 20.0\n",
            "isl: 1000\n",
            "ttft: 2000.0\n",
            "itl: 60.0\n",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn names_are_what_kubernetes_takes() {
        let mut odd = launch(Engine::Vllm, Layout::tensor(2));
        odd.model_name = "/models/1.5 (ours)__x".into();
        assert_eq!(name(&odd, "serve"), "models-1-5-ours-x-serve");
        odd.model_name = "7b".into();
        assert_eq!(name(&odd, "serve"), "m-7b-serve");
    }
}

//! The command line of one server.

use serde::Serialize;

use super::{Engine, Launch, Role};
use crate::config::DType;
use crate::{Error, Result};

/// Port of the coordinator of the ranks of a replica on several hosts.
const RENDEZVOUS_PORT: usize = 20_000;
/// Port that a server answers on.
pub(super) const PORT: usize = 8000;
/// Name of TensorRT-LLM's file of options.
pub(super) const OPTIONS_FILE: &str = "trtllm.yaml";

/// How one host of a replica learns which it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Address of the first host.
    pub leader: String,
    /// Number of this host, from 0.
    pub rank: String,
    /// Its first data-parallel rank, for vLLM.
    pub first_rank: String,
    /// Whether it is the first, which answers requests.
    pub is_leader: bool,
}

/// A command line: words, and a file it reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Command {
    /// Program and model: the words before the flags.
    pub program: Vec<String>,
    /// Flags, each with its value.
    pub flags: Vec<(String, Option<String>)>,
    /// Content of the file of options, for engines that take some options only from one.
    pub options_file: Option<String>,
}

impl Command {
    fn new(program: &[&str]) -> Self {
        let program = program.iter().map(|word| (*word).to_owned()).collect();
        Self { program, flags: Vec::new(), options_file: None }
    }

    #[expect(clippy::needless_pass_by_value, reason = "numbers and words are written alike")]
    fn flag(&mut self, name: &str, value: impl ToString) {
        self.flags.push((name.to_owned(), Some(value.to_string())));
    }

    fn switch(&mut self, name: &str, on: bool) {
        if on {
            self.flags.push((name.to_owned(), None));
        }
    }

    /// All words.
    pub fn words(&self) -> Vec<String> {
        let flags = self
            .flags
            .iter()
            .flat_map(|(name, value)| [Some(name.clone()), value.clone()].into_iter().flatten());
        self.program.iter().cloned().chain(flags).collect()
    }

    /// Value of a flag.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.flags.iter().find(|(flag, _)| flag == name).and_then(|(_, value)| value.as_deref())
    }

    /// Whether a flag is given.
    pub fn has(&self, name: &str) -> bool {
        self.flags.iter().any(|(flag, _)| flag == name)
    }

    /// Lines of shell, one flag a line.
    pub fn script(&self) -> String {
        let mut text = String::new();
        if let Some(options) = &self.options_file {
            text = format!("cat >{OPTIONS_FILE} <<'EOF'\n{options}EOF\n");
        }
        text += &self.program.iter().map(|w| quoted(w)).collect::<Vec<_>>().join(" ");
        for (name, value) in &self.flags {
            text += " \\\n    ";
            text += name;
            if let Some(value) = value {
                text.push(' ');
                text += &quoted(value);
            }
        }
        text + "\n"
    }
}

/// Variables that differ between the hosts of a replica.
const HOST_VARIABLES: [&str; 5] =
    ["$LEADER_ADDRESS", "$HOST_RANK", "$FIRST_DATA_RANK", "$LWS_", "$((LWS_"];

/// A word as a shell takes it; only variables of hosts are left to it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@+%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    if HOST_VARIABLES.iter().any(|name| word.starts_with(name)) {
        return format!("\"{word}\"");
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Three decimals, rounded down: a share must not grow.
fn share(value: f64) -> String {
    format!("{:.3}", (value * 1000.0 + 1e-6).floor() / 1000.0)
}

/// A host by the variables that a script takes.
fn of_shell(is_leader: bool) -> Node {
    Node {
        leader: "$LEADER_ADDRESS".into(),
        rank: "$HOST_RANK".into(),
        first_rank: "$FIRST_DATA_RANK".into(),
        is_leader,
    }
}

impl Launch {
    /// The command line of one role; of the first host where a replica spans several.
    ///
    /// # Errors
    /// [`Error::Unfit`] when the engine cannot be told the layout.
    pub fn command(&self, role: &Role) -> Result<Command> {
        let node = (role.hosts(&self.device) > 1).then(|| of_shell(true));
        self.command_on(role, node.as_ref())
    }

    /// The command line of every host of a replica but the first; `None` where it has one host.
    ///
    /// # Errors
    /// As [`Self::command`].
    pub fn command_of_others(&self, role: &Role) -> Result<Option<Command>> {
        if role.hosts(&self.device) < 2 {
            return Ok(None);
        }
        self.command_on(role, Some(&of_shell(false))).map(Some)
    }

    /// The command line on one host of several; `None` where there is only one.
    ///
    /// # Errors
    /// As [`Self::command`].
    pub fn command_on(&self, role: &Role, node: Option<&Node>) -> Result<Command> {
        match self.engine {
            Engine::Vllm => self.vllm(role, node),
            Engine::Sglang => Ok(self.sglang(role, node)),
            Engine::Trtllm => self.trtllm(role, node),
        }
    }

    fn vllm(&self, role: &Role, node: Option<&Node>) -> Result<Command> {
        let layout = role.layout;
        if layout.moe_ep > 1 && layout.moe_tp > 1 {
            let reason =
                "vLLM spreads experts over all devices or splits each over all; it cannot mix";
            return Err(Error::unfit(format!("--emit of {layout}"), reason));
        }
        let mut c = Command::new(&["vllm", "serve", &self.model]);
        c.flag("--host", "0.0.0.0");
        c.flag("--port", PORT);
        c.flag("--tensor-parallel-size", layout.attention_tp);
        c.flag("--data-parallel-size", layout.attention_dp);
        c.switch("--enable-expert-parallel", layout.moe_ep > 1);
        c.flag("--max-num-seqs", role.batch_per_group());
        c.flag("--max-num-batched-tokens", role.tokens_per_group());
        c.switch("--enable-chunked-prefill", role.mixed);
        c.flag("--gpu-memory-utilization", share(role.memory.usable_share));
        if let Some(word) = self.online_quantisation() {
            c.flag("--quantization", word);
        }
        if self.cache == DType::Fp8 {
            c.flag("--kv-cache-dtype", "fp8");
        }
        let Some(node) = node else { return Ok(c) };
        if layout.attention_dp > 1 {
            let local = role.devices_per_host(&self.device) / layout.attention_tp;
            if local == 0 {
                let reason = "an attention group spans several hosts";
                return Err(Error::unfit(format!("--emit of {layout}"), reason));
            }
            c.flag("--data-parallel-size-local", local);
            c.flag("--data-parallel-address", &node.leader);
            c.flag("--data-parallel-rpc-port", RENDEZVOUS_PORT);
            if !node.is_leader {
                c.flag("--data-parallel-start-rank", &node.first_rank);
            }
        } else {
            c.flag("--nnodes", role.hosts(&self.device));
            c.flag("--node-rank", &node.rank);
            c.flag("--master-addr", &node.leader);
            c.flag("--master-port", RENDEZVOUS_PORT);
        }
        c.switch("--headless", !node.is_leader);
        Ok(c)
    }

    fn sglang(&self, role: &Role, node: Option<&Node>) -> Command {
        let layout = role.layout;
        let mut c = Command::new(&["python3", "-m", "sglang.launch_server"]);
        c.flag("--model-path", &self.model);
        c.flag("--host", "0.0.0.0");
        c.flag("--port", PORT);
        // Of all devices; attention groups divide it.
        c.flag("--tp-size", layout.devices());
        if layout.attention_dp > 1 {
            c.flag("--dp-size", layout.attention_dp);
            c.switch("--enable-dp-attention", true);
        }
        c.flag("--ep-size", layout.moe_ep);
        // Both are of all attention groups together: the server divides them.
        c.flag("--max-running-requests", role.max_batch);
        c.flag("--chunked-prefill-size", role.chunk_tokens);
        c.switch("--enable-mixed-chunk", role.mixed);
        c.flag("--mem-fraction-static", share(role.memory.usable() / role.memory.device));
        if let Some(word) = self.online_quantisation() {
            c.flag("--quantization", word);
        }
        if self.cache == DType::Fp8 {
            c.flag("--kv-cache-dtype", "fp8_e4m3");
        }
        if let Some(node) = node {
            c.flag("--dist-init-addr", format!("{}:{RENDEZVOUS_PORT}", node.leader));
            c.flag("--nnodes", role.hosts(&self.device));
            c.flag("--node-rank", &node.rank);
        }
        c
    }

    fn trtllm(&self, role: &Role, node: Option<&Node>) -> Result<Command> {
        let layout = role.layout;
        if layout.attention_dp > 1 && layout.attention_tp > 1 {
            let reason =
                "TensorRT-LLM splits attention over all devices or over none; it cannot mix";
            return Err(Error::unfit(format!("--emit of {layout}"), reason));
        }
        // Several hosts are started by MPI, one rank a device.
        let launcher = ["trtllm-llmapi-launch", "trtllm-serve", self.model.as_str()];
        let mut c = Command::new(if node.is_some() { &launcher } else { &launcher[1..] });
        c.flag("--host", "0.0.0.0");
        c.flag("--port", PORT);
        c.flag("--backend", "pytorch");
        c.flag("--tp_size", layout.devices());
        c.flag("--ep_size", layout.moe_ep);
        if node.is_some() {
            c.flag("--gpus_per_node", role.devices_per_host(&self.device));
        }
        c.flag("--max_batch_size", role.batch_per_group());
        c.flag("--max_num_tokens", role.tokens_per_group());
        c.switch("--enable_chunked_prefill", role.mixed);
        // Of what the weights and buffers leave.
        let free = role.memory.device - role.weights - role.memory.reserve;
        let cache = role.memory.usable() - role.weights;
        c.flag("--kv_cache_free_gpu_memory_fraction", share(cache / free));
        let mut options = String::new();
        if layout.attention_dp > 1 {
            options += "enable_attention_dp: true\n";
        }
        if self.cache == DType::Fp8 {
            options += "kv_cache_config:\n  dtype: fp8\n";
        }
        if !options.is_empty() {
            c.flag("--extra_llm_api_options", OPTIONS_FILE);
            c.options_file = Some(options);
        }
        Ok(c)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::launch;
    use super::*;
    use crate::serving::Layout;

    fn command(engine: Engine, layout: Layout) -> Command {
        let launch = launch(engine, layout);
        launch.command(&launch.roles[0]).unwrap()
    }

    #[test]
    fn limits_are_given_as_each_engine_counts_them() {
        let vllm = command(Engine::Vllm, Layout::data_expert(8));
        assert_eq!(vllm.value("--max-num-seqs"), Some("32"));
        assert_eq!(vllm.value("--max-num-batched-tokens"), Some("1024"));
        assert_eq!(vllm.value("--tensor-parallel-size"), Some("1"));
        assert!(vllm.has("--enable-expert-parallel") && !vllm.has("--nnodes"));
        let sglang = command(Engine::Sglang, Layout::data_expert(8));
        assert_eq!(sglang.value("--max-running-requests"), Some("256"));
        assert_eq!(sglang.value("--chunked-prefill-size"), Some("8192"));
        assert_eq!(sglang.value("--tp-size"), Some("8"));
        assert!(sglang.has("--enable-dp-attention"));
        let trtllm = command(Engine::Trtllm, Layout::data_expert(8));
        assert_eq!(trtllm.value("--max_batch_size"), Some("32"));
        assert_eq!(trtllm.options_file.as_deref(), Some("enable_attention_dp: true\n"));
    }

    #[test]
    fn the_memory_share_is_of_what_each_engine_divides() {
        // 80 GB nominal, 85.52 reported; 90 % less 3.5 GB is 73.468, of which 40 are weights.
        let of =
            |engine, flag: &str| command(engine, Layout::tensor(2)).value(flag).unwrap().to_owned();
        assert_eq!(of(Engine::Vllm, "--gpu-memory-utilization"), "0.900");
        assert_eq!(of(Engine::Sglang, "--mem-fraction-static"), "0.859");
        assert_eq!(of(Engine::Trtllm, "--kv_cache_free_gpu_memory_fraction"), "0.796");
    }

    #[test]
    fn several_hosts_find_each_other() {
        let tensor = command(Engine::Vllm, Layout::tensor(16));
        assert_eq!(tensor.value("--nnodes"), Some("2"));
        assert!(
            tensor.script().contains("--master-addr \"$LEADER_ADDRESS\""),
            "{}",
            tensor.script()
        );
        let data = command(Engine::Vllm, Layout::data_expert(16));
        assert_eq!(data.value("--data-parallel-size-local"), Some("8"));
        assert!(!data.has("--headless") && !data.has("--data-parallel-start-rank"));
        let sglang = command(Engine::Sglang, Layout::tensor(16));
        assert_eq!(sglang.value("--dist-init-addr"), Some("$LEADER_ADDRESS:20000"));
        assert_eq!(command(Engine::Trtllm, Layout::tensor(16)).program[0], "trtllm-llmapi-launch");
    }

    #[test]
    fn layouts_that_an_engine_lacks_are_refused() {
        let mixed = Layout { attention_tp: 4, attention_dp: 2, moe_tp: 2, moe_ep: 4 };
        for engine in [Engine::Vllm, Engine::Trtllm] {
            let launch = launch(engine, mixed);
            assert_eq!(launch.command(&launch.roles[0]).unwrap_err().exit_code(), 4);
        }
        assert_eq!(command(Engine::Sglang, mixed).value("--dp-size"), Some("2"));
    }

    #[test]
    fn words_survive_a_shell() {
        assert_eq!(quoted("a/b-1.0"), "a/b-1.0");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted("a b"), "'a b'");
    }
}

//! Several latency models, asked in order for each operation.

use std::sync::{Arc, OnceLock};

use crate::latency::query::{Operation, Query};
use crate::latency::{Absent, Answer, Latency, LatencyModel};

/// Models in order of preference.
pub struct Stack {
    models: Vec<Arc<dyn LatencyModel>>,
    /// What the first model that was passed over lacked, by operation, in the order of
    /// [`Operation::ALL`].
    lacked: [OnceLock<Absent>; Operation::ALL.len()],
}

impl Stack {
    /// A stack that asks `models` in their order.
    pub fn new(models: Vec<Arc<dyn LatencyModel>>) -> Self {
        Self { models, lacked: [const { OnceLock::new() }; Operation::ALL.len()] }
    }

    /// Who has answered an operation, in words, with why no model before it did; `None` when no model
    /// holds it.
    pub fn origin(&self, operation: Operation, origin: u8) -> Option<String> {
        let from = self.models.get(usize::from(origin))?.provenance(operation)?;
        let lacked = self.lacked[operation as usize].get().filter(|_| origin > 0);
        match lacked {
            Some(Absent::Key(reason)) => Some(format!("{from} ({reason})")),
            Some(Absent::Operation) | None => Some(from),
        }
    }
}

impl LatencyModel for Stack {
    fn answer(&self, query: &Query) -> Answer {
        let mut missing = Absent::Operation;
        for (origin, model) in (0_u8..).zip(&self.models) {
            match model.answer(query) {
                Ok(latency) => return Ok(Latency { origin, ..latency }),
                // The first model that holds the operation says best what is missing.
                Err(reason) if missing == Absent::Operation => {
                    if reason != Absent::Operation {
                        self.lacked[query.operation() as usize].get_or_init(|| reason.clone());
                    }
                    missing = reason;
                }
                Err(_) => {}
            }
        }
        Err(missing)
    }

    fn provenance(&self, operation: Operation) -> Option<String> {
        self.models.iter().find_map(|m| m.provenance(operation))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DType;
    use crate::latency::query::GemmQuery;
    use crate::units::Seconds;

    /// Answers GEMMs of at least so many rows.
    struct Rows(f64);

    impl LatencyModel for Rows {
        fn answer(&self, query: &Query) -> Answer {
            match query {
                Query::Gemm(q) if q.m >= self.0 => {
                    Ok(Latency { value: Seconds(self.0), ..Latency::ZERO })
                }
                Query::Gemm(q) => Err(Absent::Key(format!("{} rows", q.m).into())),
                _ => Err(Absent::Operation),
            }
        }

        fn provenance(&self, operation: Operation) -> Option<String> {
            (operation == Operation::Gemm).then(|| format!("from {} rows on", self.0))
        }
    }

    #[test]
    fn what_one_model_lacks_falls_to_the_next_and_the_answer_says_so() {
        let stack = Stack::new(vec![Arc::new(Rows(10.0)), Arc::new(Rows(2.0))]);
        let ask = |m: f64| {
            stack.answer(&Query::Gemm(GemmQuery { m, n: 64, k: 64, weights: DType::Bf16 }))
        };
        assert_eq!(ask(16.0).unwrap().origin, 0);
        assert_eq!(ask(4.0).unwrap().origin, 1);
        assert_eq!(ask(1.0), Err(Absent::Key("1 rows".into())));
        assert_eq!(stack.origin(Operation::Gemm, 0).unwrap(), "from 10 rows on");
        let second = stack.origin(Operation::Gemm, 1).unwrap();
        assert_eq!(second, "from 2 rows on (4 rows)");
        assert!(stack.provenance(Operation::Moe).is_none());
    }
}

//! Which rank of how many this process is: what started it tells by variables, or the user by flags.
//!
//! Launchers are nested: `srun` starts `torchrun` or `mpirun` once a node, and these start the ranks. Slurm is
//! the outer one, so it counts where nobody else says anything, or where it has started as many processes as
//! the other has: then the two must agree.

use crate::{Error, Result};

/// Which rank of how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Number of this process, from 0.
    pub rank: usize,
    /// How many there are.
    pub size: usize,
    /// Number on this host, from 0, where it is told.
    pub local_rank: Option<usize>,
}

impl Place {
    /// A process on its own.
    pub const ALONE: Self = Self { rank: 0, size: 1, local_rank: Some(0) };
}

/// A launcher: what it is called, and its variables for rank, size and rank on the host.
struct Launcher {
    name: &'static str,
    rank: &'static str,
    size: &'static str,
    local: &'static str,
    /// Only with this variable: batch scripts have Slurm's other ones without being a task.
    only_with: Option<&'static str>,
}

/// Those that start ranks, and Slurm, which may start them.
const LAUNCHERS: [Launcher; 4] = [
    Launcher {
        name: "torchrun",
        rank: "RANK",
        size: "WORLD_SIZE",
        local: "LOCAL_RANK",
        only_with: None,
    },
    Launcher {
        name: "Open MPI",
        rank: "OMPI_COMM_WORLD_RANK",
        size: "OMPI_COMM_WORLD_SIZE",
        local: "OMPI_COMM_WORLD_LOCAL_RANK",
        only_with: None,
    },
    Launcher {
        name: "PMI",
        rank: "PMI_RANK",
        size: "PMI_SIZE",
        local: "MPI_LOCALRANKID",
        only_with: None,
    },
    Launcher {
        name: "Slurm",
        rank: "SLURM_PROCID",
        size: "SLURM_NTASKS",
        local: "SLURM_LOCALID",
        only_with: Some("SLURM_STEP_ID"),
    },
];

/// The launcher that may be outside of another one.
const OUTER: &str = "Slurm";

/// Finds the place of this process. `named` are the flags `--rank` and `--world`; `variable` reads the
/// environment. `None`: nobody says anything, so that this is no group.
///
/// # Errors
/// [`Error::Usage`] when two disagree, naming both; for a number that is none, or a rank beyond the size.
pub fn place(
    (rank, world): (Option<usize>, Option<usize>),
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<Place>> {
    let mut told: Vec<(&str, Place)> = Vec::new();
    match (rank, world) {
        (Some(rank), Some(size)) => {
            let place = Place { rank, size, local_rank: None };
            told.push(("--rank and --world", checked("--rank", place)?));
        }
        (None, None) => {}
        _ => return Err(Error::usage("--rank and --world", "name both or neither")),
    }
    for launcher in &LAUNCHERS {
        if let Some(place) = launcher.place(variable)? {
            told.push((launcher.name, place));
        }
    }
    let inner = told.iter().find(|(name, _)| *name != OUTER).map(|(_, place)| place.size);
    if let Some(size) = inner {
        told.retain(|(name, place)| *name != OUTER || place.size >= size);
    }
    let Some(&(first, place)) = told.first() else { return Ok(None) };
    for (name, other) in &told[1..] {
        if (other.rank, other.size) != (place.rank, place.size) {
            return Err(Error::usage(
                "launcher",
                format!(
                    "{first} says rank {} of {}, {name} says rank {} of {}; start it with one of them, or \
                     unset the other's variables",
                    place.rank, place.size, other.rank, other.size
                ),
            ));
        }
    }
    let local_rank = told.iter().find_map(|(_, place)| place.local_rank);
    Ok(Some(Place { local_rank, ..place }))
}

impl Launcher {
    fn place(&self, variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Place>> {
        if self.only_with.is_some_and(|name| variable(name).is_none()) {
            return Ok(None);
        }
        let number = |name: &str| -> Result<Option<usize>> {
            let Some(text) = variable(name) else { return Ok(None) };
            let wrong = |_| Error::usage(name, format!("`{text}` is not a number"));
            text.trim().parse().map(Some).map_err(wrong)
        };
        let (Some(rank), Some(size)) = (number(self.rank)?, number(self.size)?) else {
            return Ok(None);
        };
        let place = Place { rank, size, local_rank: number(self.local)? };
        checked(self.rank, place).map(Some)
    }
}

fn checked(name: &str, place: Place) -> Result<Place> {
    if place.rank < place.size {
        return Ok(place);
    }
    Err(Error::usage(name, format!("{} is no rank of {}", place.rank, place.size)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(
        flags: (Option<usize>, Option<usize>),
        variables: &[(&str, &str)],
    ) -> Result<Option<Place>> {
        place(flags, &|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    const NO_FLAGS: (Option<usize>, Option<usize>) = (None, None);

    #[test]
    fn each_launcher_says_which_rank_it_is() {
        let torchrun = [("RANK", "5"), ("WORLD_SIZE", "16"), ("LOCAL_RANK", "1")];
        let ompi = [("OMPI_COMM_WORLD_RANK", "5"), ("OMPI_COMM_WORLD_SIZE", "16")];
        let pmi = [("PMI_RANK", "5"), ("PMI_SIZE", "16")];
        let slurm = [
            ("SLURM_PROCID", "5"),
            ("SLURM_NTASKS", "16"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_STEP_ID", "0"),
        ];
        for variables in [&torchrun[..], &ompi, &pmi, &slurm] {
            let place = found(NO_FLAGS, variables).unwrap().unwrap();
            assert_eq!((place.rank, place.size), (5, 16), "{variables:?}");
        }
        assert_eq!(found(NO_FLAGS, &torchrun).unwrap().unwrap().local_rank, Some(1));
        let named = found((Some(3), Some(4)), &[]).unwrap().unwrap();
        assert_eq!((named.rank, named.size), (3, 4));
        // A batch script has Slurm's variables and is no task.
        assert_eq!(found(NO_FLAGS, &slurm[..3]).unwrap(), None);
        assert_eq!(found(NO_FLAGS, &[]).unwrap(), None);
    }

    #[test]
    fn slurm_outside_of_another_launcher_counts_nodes_and_not_ranks() {
        let nested = [
            ("SLURM_PROCID", "1"),
            ("SLURM_NTASKS", "2"),
            ("SLURM_STEP_ID", "0"),
            ("RANK", "9"),
            ("WORLD_SIZE", "16"),
        ];
        let place = found(NO_FLAGS, &nested).unwrap().unwrap();
        assert_eq!((place.rank, place.size), (9, 16));
    }

    #[test]
    fn two_that_disagree_are_both_named() {
        let ompi = ("OMPI_COMM_WORLD_RANK", "0");
        let size = ("OMPI_COMM_WORLD_SIZE", "4");
        let slurm = [("SLURM_PROCID", "2"), ("SLURM_NTASKS", "4"), ("SLURM_STEP_ID", "0")];
        for (flags, variables, names) in [
            (
                NO_FLAGS,
                vec![ompi, size, ("RANK", "1"), ("WORLD_SIZE", "4")],
                ["torchrun", "Open MPI"],
            ),
            (NO_FLAGS, [&[ompi, size], &slurm[..]].concat(), ["Open MPI", "Slurm"]),
            ((Some(1), Some(4)), vec![ompi, size], ["--rank", "Open MPI"]),
            ((Some(1), None), vec![], ["--rank", "--world"]),
            ((Some(4), Some(4)), vec![], ["--rank", "4 is no rank of 4"]),
            (NO_FLAGS, vec![("RANK", "x"), ("WORLD_SIZE", "4")], ["RANK", "`x`"]),
        ] {
            let error = found(flags, &variables).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            for name in names {
                assert!(error.to_string().contains(name), "{error}");
            }
        }
    }
}

//! Where the latencies of a page's ranking come from: what it brought along.

use super::inputs::Serving;
use super::{RankArgs, serving};
use crate::cli::live::THIS_MACHINE;
use crate::cli::profile::Sources;
use crate::law::Scaling;
use crate::plan::inputs::RankInputs;
use crate::{Error, Result};

/// What `--profile` names.
pub(super) struct Place {
    sources: Sources,
    is_here: bool,
}

impl Place {
    pub(super) fn find(args: &RankArgs) -> Result<Self> {
        let named = &args.source.profile;
        if named.is_empty() {
            return Err(Error::usage("--profile", "a page measures nothing"));
        }
        let is_here = *named == [THIS_MACHINE];
        Ok(Self { sources: Sources::read(&args.source)?, is_here })
    }

    /// Whether the machine of the one who made the page was measured for it.
    pub(super) const fn is_here(&self) -> bool {
        self.is_here
    }

    pub(super) fn serving(&self, args: &RankArgs) -> Result<Serving> {
        serving(&self.sources, args.device.as_deref())
    }

    #[expect(clippy::unnecessary_wraps, reason = "elsewhere a machine is measured here")]
    pub(super) fn sources(self, _: &RankArgs, _: &Scaling, _: &mut RankInputs) -> Result<Sources> {
        Ok(self.sources)
    }
}

//! `duet witness begin`: makes the register of a pair whose witness isn't `duet witness` but an object in somebody else's store. The nodes never
//! do that themselves: a register that is gone isn't an empty one.

use super::{Failure, load};
use crate::net::tls;
use crate::witness::backend::{self, Begun};

const USAGE: &str = "duet witness begin --config-file FILE (a node's)";

/// Runs the command.
///
/// # Errors
/// Exit code 64 for a configuration without a witness, 1 when nobody knows whether there is a register now.
pub(super) fn run(args: &[String]) -> Result<(), Failure> {
    let Some(loaded) = load::load(args, USAGE)? else { return Ok(()) };
    let witness = loaded.config.pair.as_ref().and_then(|pair| Some((pair, pair.witness.as_ref()?)));
    let (pair, url) =
        witness.ok_or_else(|| Failure::usage(format!("no node of a pair with a --witness-url is configured; {USAGE}")))?;
    loaded.start_logging()?;
    let failed = |error: &dyn std::fmt::Display| Failure::serving(error.to_string());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| failed(&error))?;
    let _entered = runtime.enter();
    let tls = tls::client_config(&pair.tls.config())?;
    let witness = backend::connect(url, &pair.cluster, tls, backend::deadline(pair.timing)).map_err(|error| failed(&error))?;
    let name = witness.describe();
    match runtime.block_on(witness.begin()).map_err(|error| failed(&error))? {
        Begun::New => println!("the pair \"{}\" has an empty register now: {name}", pair.cluster),
        Begun::Already => println!("the pair \"{}\" has a register already, which was left as it is: {name}", pair.cluster),
    }
    Ok(())
}

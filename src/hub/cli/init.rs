//! `init`: creates the hub's keys and its directory, replaces nothing, and prints what to do next.

use std::io::Write;

use pgw_host::exit::{Exit, fail};
use pgw_host::init::{directory, is_there};
use pgw_host::secret;

use crate::config::HubConfig;
use crate::keys;

/// `practice-hub init`.
pub fn run(config: &HubConfig, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    let settings = &config.settings;
    if let Err(exit) = directory(&settings.directory, err) {
        return exit;
    }
    let file = &settings.signing_key_file;
    let (key, there) = match secret::make_signing_key(file) {
        Ok(key) => (key, "created"),
        Err(error) if is_there(&error) => match secret::signing_key(file) {
            Ok(key) => (key, "exists already, unchanged"),
            Err(error) => return fail(err, &error, error.consequence()),
        },
        Err(error) => return fail(err, &error, error.consequence()),
    };
    let carry_file = &settings.carry_key_file;
    let (recipient, carry_there) = match keys::make_carry_key(carry_file) {
        Ok(identity) => (identity.recipient(), "created"),
        Err(error) if is_there(&error) => match keys::carry_key(carry_file) {
            Ok(identity) => (identity.recipient(), "exists already, unchanged"),
            Err(error) => return fail(err, &error, error.consequence()),
        },
        Err(error) => return fail(err, &error, error.consequence()),
    };
    let (store, file, name) = (settings.directory.display(), file.display(), config.file.display());
    let (hub, public, carry_file) = (&settings.hub, key.public(), carry_file.display());
    let _ = writeln!(
        out,
        "store        {store}\n\
         signing key  {file}: {there}\n\
         carry key    {carry_file}: {carry_there}\n\
         \n\
         Every gateway's configuration needs:\n\
         \n\
         [[hub]]\n\
         name = \"{hub}\"\n\
         public_key = \"{public}\"\n\
         recipient = \"{recipient}\"\n\
         \n\
         Next:\n\
         1. Keep a copy of both keys in a safe place: if the signing key is lost every gateway must be reconfigured; if the\n   \
         carry key is lost, bundles already written cannot be read.\n\
         2. Get a client certificate with the common name {hub} from the fleet's CA.\n\
         3. practice-hub gateway add B86022.gw1 --public-key KEY adds a gateway; `practice-gateway init` on its box prints\n   \
         the key.\n\
         4. practice-hub acl prints the broker's access rules for the listed gateways.\n\
         5. practice-hub check --config {name}, then systemctl enable --now practice-hub"
    );
    Exit::Done
}

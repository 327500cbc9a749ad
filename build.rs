//! Builds the guest as a static program and hands its path to the crate, which embeds it:
//! one `cargo build` makes everything and one file is the whole product.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    for input in ["guest", "Cargo.lock", "build.rs"] {
        println!("cargo:rerun-if-changed={input}");
    }
    let target = env::var("TARGET").expect("cargo sets TARGET for build scripts");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR for build scripts"));
    // A target directory of its own: the outer cargo holds the lock of the usual one.
    let target_dir = out.join("guest");
    let cargo = env::var_os("CARGO").expect("cargo sets CARGO for build scripts");
    let status = Command::new(cargo)
        .args([
            "build",
            "--locked",
            "--package",
            "oc-guest",
            "--bin",
            "oc-guest",
        ])
        .args(["--profile", "guest", "--target", &target, "--target-dir"])
        .arg(&target_dir)
        // Static, so that it runs in any root file system; `--target` keeps the flag away from
        // the guest's own build script and procedural macros, which must be dynamic.
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")
        // Under `cargo clippy` the wrapper would lint the guest instead of building it.
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTFLAGS")
        .status()
        .expect("cargo can be started from a build script");
    assert!(
        status.success(),
        "the guest program did not build (see above)"
    );
    let binary = target_dir.join(&target).join("guest").join("oc-guest");
    println!("cargo:rustc-env=OC_GUEST_BINARY={}", binary.display());
}

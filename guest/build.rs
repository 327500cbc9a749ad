//! Compiles the protocol with protox: no `protoc` is needed.

fn main() {
    println!("cargo:rerun-if-changed=proto/guest.proto");
    let descriptors = protox::compile(["proto/guest.proto"], ["proto"])
        .expect("the protocol file is part of the source and compiles");
    tonic_prost_build::configure()
        .compile_fds(descriptors)
        .expect("the compiled protocol generates code");
}

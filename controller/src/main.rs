//! The `k0s` executable: everything is in [`controller::cli`].

fn main() -> std::process::ExitCode {
    controller::cli::main()
}

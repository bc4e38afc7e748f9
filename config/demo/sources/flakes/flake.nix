{
  description = "A flake without inputs";

  outputs = { self }:
    let
      systems = [ "x86_64-linux" "aarch64-linux" ];
      each = f: builtins.listToAttrs (map (system: { name = system; value = f system; }) systems);
      script = system: name: text: derivation {
        inherit name system;
        builder = "/bin/sh";
        args = [ "-euc" text ];
        PATH = "/usr/bin:/bin";
      };
    in
    {
      packages = each (system: {
        default = script system "app" ''
          mkdir -p "$out/bin"
          cp ${./app.sh} "$out/bin/app"
          chmod +x "$out/bin/app"
        '';
      });

      # The jobset flakes/main.
      hydraJobs = each (system: {
        app = self.packages.${system}.default;
        tests.app = script system "app-test" ''
          ${self.packages.${system}.default}/bin/app | tee "$out"
        '';
      });

      # The jobset flakes/checks.
      checks = each (system: {
        syntax = script system "syntax" ''
          sh -n ${./app.sh} && echo "no syntax errors" | tee "$out"
        '';
      });
    };
}

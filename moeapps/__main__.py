from moeapps.cli.main import main

raise SystemExit(main())

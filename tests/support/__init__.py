"""What tests of several directories share: images, bundles, the installed command."""

"""Runtime: everything the device gets. numpy and one engine library; never torch, not lazily."""

"""Jetsons that are folders: files with what such boards were seen to say.

Of an Orin Nano with JetPack 6: the release line is that of lesomnus/tegra-exporter,
stats/parse_test.go; modes and model as boards with Jetson Linux 36.4 have them; clocks in kHz and
Hz as ``jetson_clocks --show`` prints them (rbonghi/jetson_stats issue 381). Of a Nano with JetPack
4: NVIDIA's power_management_nano.html (modes) and rbonghi/jetson_stats issue 130 (a mode of one's
own); /var/lib/nvpmodel/status with a fan's mode is that of JetPack 4.3.
"""

RELEASE_36 = (
    "# R36 (release), REVISION: 4.4, GCID: 41062509, BOARD: generic, EABI: aarch64, "
    "DATE: Mon Jun 16 16:07:13 UTC 2025\n# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia\n"
)
RELEASE_32 = (
    "# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t210ref, EABI: aarch64, "
    "DATE: Sat Feb 19 17:05:08 UTC 2022\n"
)
CUDA = """{
   "cuda" : {
      "name" : "CUDA SDK",
      "version" : "12.6.11"
   },
   "cuda_cudart" : {
      "name" : "CUDA Runtime (cudart)",
      "version" : "12.6.68"
   }
}
"""
ORIN_NANO = {
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
    "proc/sys/kernel/osrelease": "5.15.148-tegra\n",
    "etc/nv_tegra_release": RELEASE_36,
    "usr/local/cuda/version.json": CUDA,
    "var/lib/nvpmodel/status": "pmode:0002\n",
    "etc/nvpmodel.conf": "# MAXN is the NONE power model to release all constraints\n"
    "< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n"
    "< POWER_MODEL ID=1 NAME=25W >\nCPU_ONLINE CORE_0 1\n"
    "< POWER_MODEL ID=2 NAME=MAXN_SUPER >\nCPU_ONLINE CORE_0 1\n"
    "< PM_CONFIG DEFAULT=1 >\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_min_freq": "729600\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": "1728000\n",
    "sys/devices/system/cpu/cpufreq/policy4/scaling_min_freq": "729600\n",
    "sys/devices/system/cpu/cpufreq/policy4/scaling_max_freq": "1728000\n",
    "sys/class/devfreq/17000000.gpu/min_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/max_freq": "1020000000\n",
    "sys/class/devfreq/15340000.vic/min_freq": "115200000\n",
    "sys/class/devfreq/15340000.vic/max_freq": "729600000\n",
}
NANO = {
    "proc/device-tree/model": "NVIDIA Jetson Nano Developer Kit\0",
    "proc/sys/kernel/osrelease": "4.9.253-tegra\n",
    "etc/nv_tegra_release": RELEASE_32,
    "var/lib/nvpmodel/status": "pmode:0002 fmode:quiet\n",
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=1 NAME=5W >\n"
    "# < POWER_MODEL ID=2 NAME=OLD >\n< POWER_MODEL NAME=10W ID=2 >\nCPU_A57 MAX_FREQ 1479000\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_min_freq": "1479000\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": "1479000\n",
    "sys/class/devfreq/57000000.gpu/min_freq": "921600000\n",
    "sys/class/devfreq/57000000.gpu/max_freq": "921600000\n",
}


def make_root(folder, files):
    """Write `files` below `folder` and return it."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder

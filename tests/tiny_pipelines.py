"""One tiny pipeline of random weights for each family, of diffusers' own classes.

Prompts are embeddings of noise, so there are no text encoders. `tiny(name)` gives the pipeline and
the settings that it is called with, for two images of 32 x 64 pixels (height by width).

Shapes: B images, T tokens of D.
"""

from __future__ import annotations

import diffusers
import torch

HEIGHT, WIDTH, BATCH, TOKENS = 32, 64, 2, 5
SIZE = {"height": HEIGHT, "width": WIDTH}
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def noise(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def kl(channels: int = 4, name: str = "AutoencoderKL", levels: int = 2, **config):
    """An autoencoder of half the size; FLUX and its like count their patches by its blocks."""
    return getattr(diffusers, name)(
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=channels,
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=32,
        **config,
    ).eval()


def unet(channels: int = 4, width: int = 16, **config):
    return diffusers.UNet2DConditionModel(
        sample_size=16,
        in_channels=channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=4,
        norm_num_groups=4,
        **config,
    ).eval()


def words(width: int = 16) -> dict:
    """Embeddings with and without guidance."""
    return {
        "prompt_embeds": noise(BATCH, TOKENS, width),
        "negative_prompt_embeds": noise(BATCH, TOKENS, width, seed=6),
    }


def pooled(width: int = 16) -> dict:
    return {
        "pooled_prompt_embeds": noise(BATCH, width),
        "negative_pooled_prompt_embeds": noise(BATCH, width, seed=6),
    }


def picture() -> torch.Tensor:
    return torch.rand(BATCH, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(7))


def hole() -> torch.Tensor:
    mask = torch.zeros(BATCH, 1, HEIGHT, WIDTH)
    mask[..., WIDTH // 2 :] = 1
    return mask


def ddim(**config):
    return diffusers.DDIMScheduler(clip_sample=False, steps_offset=1, **BETAS, **config)


def stable_diffusion(kind: str = "", prediction: str = "epsilon", **extra):
    pipe = getattr(diffusers, f"StableDiffusion{kind}Pipeline")(
        vae=kl(),
        text_encoder=None,
        tokenizer=None,
        unet=unet(),
        scheduler=ddim(prediction_type=prediction),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **extra,
    )
    return pipe, {**words(), **SIZE}


def img2img():
    pipe, settings = stable_diffusion("Img2Img")
    return pipe, {**words(), "image": picture(), "strength": 0.9}


def inpaint():
    pipe, settings = stable_diffusion("Inpaint")
    return pipe, {**settings, "image": picture(), "mask_image": hole(), "strength": 0.9}


def controlnet():
    net = diffusers.ControlNetModel.from_unet(unet(), conditioning_embedding_out_channels=(4, 8))
    net.controlnet_cond_embedding = type(net.controlnet_cond_embedding)(
        conditioning_embedding_channels=8, block_out_channels=(4, 8)
    )
    pipe, settings = stable_diffusion("ControlNet", controlnet=net.eval())
    return pipe, {**settings, "image": picture()}


def latent_consistency():
    pipe = diffusers.LatentConsistencyModelPipeline(
        vae=kl(),
        text_encoder=None,
        tokenizer=None,
        unet=unet(time_cond_proj_dim=32),
        scheduler=diffusers.LCMScheduler(clip_sample=False, **BETAS),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipe, {"prompt_embeds": words()["prompt_embeds"], **SIZE}


def xl(kind: str = "", **vae_config):
    pipe = getattr(diffusers, f"StableDiffusionXL{kind}Pipeline")(
        vae=kl(scaling_factor=0.13025, force_upcast=False, **vae_config),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=unet(
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=6 * 4 + 16,
            use_linear_projection=True,
        ),
        scheduler=diffusers.EulerDiscreteScheduler(steps_offset=1, **BETAS),
        add_watermarker=False,
        force_zeros_for_empty_prompt=False,
    )
    settings = {**words(), **pooled(), **SIZE}
    if kind == "Img2Img":
        settings = {**words(), **pooled(), "image": picture(), "strength": 0.9}
    if kind == "Inpaint":
        settings |= {"image": picture(), "mask_image": hole(), "strength": 0.9}
    return pipe, settings


def playground():
    return xl(latents_mean=[0.5, -1.0, 0.2, 0.1], latents_std=[2.0, 3.0, 0.5, 1.5])


def sd3():
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=24,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        pos_embed_max_size=24,
    )
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=kl(scaling_factor=1.5305, shift_factor=0.0609),
        **dict.fromkeys(("text_encoder", "text_encoder_2", "text_encoder_3")),
        **dict.fromkeys(("tokenizer", "tokenizer_2", "tokenizer_3")),
    )
    return pipe, {**words(), **pooled(), **SIZE}


def flux():
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )
    pipe = diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=kl(scaling_factor=0.3611, shift_factor=0.1159),
        transformer=transformer.eval(),
        **dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")),
    )
    embeds = {"prompt_embeds": noise(BATCH, TOKENS, 16), "pooled_prompt_embeds": noise(BATCH, 16)}
    return pipe, {**embeds, **SIZE}


def flux2():
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    vae = kl(name="AutoencoderKLFlux2")
    vae.bn.running_mean.copy_(noise(16))
    vae.bn.running_var.copy_(noise(16, seed=6).abs() + 0.5)
    pipe = diffusers.Flux2KleinPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        transformer=transformer.eval(),
    )
    return pipe, {**words(), **SIZE}


def qwen():
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 8),
    )
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.5, -1.0, 0.2, 0.1],
        latents_std=[2.0, 3.0, 0.5, 1.5],
    )
    pipe = diffusers.QwenImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae.eval(),
        text_encoder=None,
        tokenizer=None,
        transformer=transformer.eval(),
    )
    masks = dict.fromkeys(
        ("prompt_embeds_mask", "negative_prompt_embeds_mask"),
        torch.ones(BATCH, TOKENS, dtype=torch.long),
    )
    return pipe, {**words(), **masks, **SIZE}


def z_image():
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 4, 8],
        axes_lens=[64, 64, 64],
    )
    pipe = diffusers.ZImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=kl(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=None,
        tokenizer=None,
        transformer=transformer.eval(),
    )
    for parameter in transformer.parameters():  # some are left empty by their class
        torch.nn.init.normal_(parameter, std=0.05)
    embeds = {key: list(value) for key, value in words().items()}
    return pipe, {**embeds, **SIZE}


def _deep():
    return diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        scaling_factor=0.41407,
    ).eval()


def sana(sprint: bool = False):
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=16,
        guidance_embeds=sprint,
    ).eval()
    parts = {"tokenizer": None, "text_encoder": None, "vae": _deep(), "transformer": transformer}
    mask = torch.ones(BATCH, TOKENS, dtype=torch.long)
    settings = {"prompt_attention_mask": mask, "use_resolution_binning": False, **SIZE}
    if sprint:
        pipe = diffusers.SanaSprintPipeline(**parts, scheduler=diffusers.SCMScheduler())
        return pipe, {"prompt_embeds": words()["prompt_embeds"], **settings}
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipe = diffusers.SanaPipeline(**parts, scheduler=scheduler)
    settings |= {"negative_prompt_attention_mask": mask, "negative_prompt": None}
    return pipe, {**words(), **settings}


def pixart():
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,  # the other half is a variance
        num_layers=1,
        norm_num_groups=4,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=16,
        use_additional_conditions=False,
    )
    pipe = diffusers.PixArtSigmaPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=kl(),
        transformer=transformer.eval(),
        scheduler=diffusers.DPMSolverMultistepScheduler(**BETAS),
    )
    mask = torch.ones(BATCH, TOKENS, dtype=torch.long)
    masks = {"prompt_attention_mask": mask, "negative_prompt_attention_mask": mask}
    plain = {"negative_prompt": None, "use_resolution_binning": False}
    return pipe, {**words(), **masks, **plain, **SIZE}


def pixels(name: str):
    model = diffusers.UNet2DModel(
        sample_size=(HEIGHT, WIDTH),
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    scheduler = getattr(diffusers, f"{name}Scheduler")()
    return getattr(diffusers, f"{name}Pipeline")(model.eval(), scheduler), {"batch_size": BATCH}


def animatediff():
    adapter = diffusers.MotionAdapter(
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_norm_num_groups=2,
        motion_num_attention_heads=2,
    )
    pipe = diffusers.AnimateDiffPipeline(
        vae=kl(),
        text_encoder=None,
        tokenizer=None,
        unet=unet(),
        motion_adapter=adapter.eval(),
        scheduler=ddim(),
    )
    return pipe, {**words(), "num_frames": 3, **SIZE}


def cogview4():
    transformer = diffusers.CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        text_embed_dim=16,
        time_embed_dim=16,
        condition_dim=4,
    )
    pipe = diffusers.CogView4Pipeline(
        tokenizer=None,
        text_encoder=None,
        vae=kl(scaling_factor=1.0),
        transformer=transformer.eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True, time_shift_type="linear"
        ),
    )
    return pipe, {**words(), **SIZE}


def hidream():
    transformer = diffusers.HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_channels=[16, 16],
        text_emb_dim=16,
        num_routed_experts=2,
        num_activated_experts=1,
        axes_dims_rope=(8, 4, 4),
        max_resolution=(32, 32),
        llama_layers=[0, 1],
        force_inference_output=True,
    )
    encoders = [
        f"{kind}{n}" for kind in ("text_encoder", "tokenizer") for n in ("", "_2", "_3", "_4")
    ]
    pipe = diffusers.HiDreamImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=kl(scaling_factor=0.3611, shift_factor=0.1159),
        transformer=transformer.eval(),
        **dict.fromkeys(encoders),
    )
    pipe.default_sample_size = 22.63  # 1024 pixels otherwise, whatever is asked
    embeds = {}
    for name, seed in (("", 5), ("negative_", 6)):
        embeds |= {
            f"{name}prompt_embeds_t5": noise(BATCH, TOKENS, 16, seed=seed),
            f"{name}prompt_embeds_llama3": noise(2, BATCH, TOKENS, 16, seed=seed),
            f"{name}pooled_prompt_embeds": noise(BATCH, 16, seed=seed),
        }
    return pipe, {**embeds, **SIZE}


def kandinsky():
    transformer = diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        in_text_dim=16,
        in_text_dim2=16,
        time_dim=16,
        out_visual_dim=4,
        model_dim=32,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=1,
        axes_dims=(4, 6, 6),
    )
    vae = kl(scaling_factor=0.3611)
    pipe = diffusers.Kandinsky5T2IPipeline(
        transformer=transformer.eval(),
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        **dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")),
    )
    pipe.vae_scale_factor_spatial = 2  # its class has 8, as FLUX's VAE
    pipe.resolutions = [(WIDTH, HEIGHT)]
    lengths = torch.arange(BATCH + 1, dtype=torch.int32) * TOKENS
    embeds = {}
    for name, seed in (("", 5), ("negative_", 6)):
        embeds |= {
            f"{name}prompt_embeds_qwen": noise(BATCH, TOKENS, 16, seed=seed),
            f"{name}prompt_embeds_clip": noise(BATCH, 16, seed=seed),
            f"{name}prompt_cu_seqlens": lengths,
        }
    return pipe, {**embeds, **SIZE}


def wan(packed: bool = False):
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=16,
        num_layers=1,
        rope_max_seq_len=32,
    )
    shape = {"dim_mult": [1, 1], "temperal_downsample": [True], "num_res_blocks": 1}
    if packed:  # as Wan 2.2's: pixels in channels, shortcuts over its blocks
        shape |= {"is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12}
        shape |= {"decoder_base_dim": 8, "scale_factor_spatial": 4}
    vae = diffusers.AutoencoderKLWan(
        base_dim=8,
        z_dim=4,
        latents_mean=[0.5, -1.0, 0.2, 0.1],
        latents_std=[2.0, 3.0, 0.5, 1.5],
        **{"scale_factor_spatial": 2, "scale_factor_temporal": 2, **shape},
    )
    pipe = diffusers.WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae.eval(),
        transformer=transformer.eval(),
        scheduler=diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )
    return pipe, {**words(), **SIZE, "num_frames": 1}


def upscale():
    pipe = diffusers.StableDiffusionUpscalePipeline(
        vae=kl(scaling_factor=0.08333, force_upcast=False),
        text_encoder=None,
        tokenizer=None,
        unet=unet(7, out_channels=4, num_class_embeds=1000),
        low_res_scheduler=diffusers.DDPMScheduler(**BETAS),
        scheduler=ddim(),
    )
    small = torch.nn.functional.interpolate(picture(), scale_factor=0.5)
    return pipe, {**words(), "image": small}


def hunyuan(kind: str = ""):
    config = {
        "sample_size": 16,
        "patch_size": 2,
        "in_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "hidden_size": 16,
        "cross_attention_dim": 16,
        "cross_attention_dim_t5": 16,
        "pooled_projection_dim": 8,
        "text_len": TOKENS,
        "text_len_t5": TOKENS,
        "activation_fn": "gelu-approximate",
    }
    transformer = diffusers.HunyuanDiT2DModel(**config).eval()
    more, extra = {}, {}
    if kind == "ControlNet":
        net = diffusers.HunyuanDiT2DControlNetModel(
            **{k: v for k, v in config.items() if k not in ("num_layers",)},
            transformer_num_layers=2,
        )
        more, extra = {"controlnet": net.eval()}, {"control_image": picture()}
    pipe = getattr(diffusers, f"HunyuanDiT{kind}Pipeline")(
        vae=kl(levels=4),  # its class counts on a factor of 8
        transformer=transformer,
        scheduler=diffusers.DDPMScheduler(prediction_type="v_prediction", **BETAS),
        **dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor")),
        requires_safety_checker=False,
        **more,
    )
    embeds = {}
    for name, seed in (("", 5), ("negative_", 6)):
        for number in ("", "_2"):
            embeds[f"{name}prompt_embeds{number}"] = noise(BATCH, TOKENS, 16, seed=seed)
            embeds[f"{name}prompt_attention_mask{number}"] = torch.ones(BATCH, TOKENS)
    return pipe, {**embeds, **extra, "use_resolution_binning": False, **SIZE}


def cascade():
    """The second stage: from the first one's features, which are noise, to the VQGAN's latents."""
    from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel

    block = ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock")
    decoder = diffusers.StableCascadeUNet(
        in_channels=4,
        out_channels=4,
        conditioning_dim=16,
        block_out_channels=(8, 16),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        block_types_per_layer=(block, block),
        clip_text_pooled_in_channels=16,
        clip_seq=1,
        effnet_in_channels=6,
    )
    vqgan = PaellaVQModel(levels=2, bottleneck_blocks=1, embed_dim=8, num_vq_embeddings=8)
    pipe = diffusers.StableCascadeDecoderPipeline(
        decoder=decoder.eval(),
        tokenizer=None,
        text_encoder=None,
        scheduler=diffusers.DDPMWuerstchenScheduler(),
        vqgan=vqgan.eval(),
        latent_dim_scale=8.0,
    )
    embeds = {"prompt_embeds": noise(BATCH, 1, 16), "prompt_embeds_pooled": noise(BATCH, 1, 16)}
    return pipe, {**embeds, "image_embeddings": noise(BATCH, 6, 1, 2, seed=8)}


def qwen_edit(kind: str = ""):
    """Image to image at a megapixel, which the pipeline enlarges all to: its VAE makes 64 times
    less of a side. One image of 128 x 256, for Plus takes no more."""
    from PIL import Image

    pipe, settings = qwen()
    levels = 6
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1] * (levels + 1),
        num_res_blocks=1,
        temperal_downsample=[False] * levels,
        latents_mean=[0.5, -1.0, 0.2, 0.1],
        latents_std=[2.0, 3.0, 0.5, 1.5],
    )
    parts = {**pipe.components, "vae": vae.eval(), "processor": None}
    pipe = getattr(diffusers, f"QwenImageEdit{kind}Pipeline")(**parts)
    image = Image.new("RGB", (64, 32), (200, 120, 40))
    settings |= {"image": image, "height": 128, "width": 256, "true_cfg_scale": 1.0}
    return pipe, {
        key: value[:1] if isinstance(value, torch.Tensor) else value
        for key, value in settings.items()
        if "negative" not in key
    }


TINY = {
    "SD 1.5": stable_diffusion,
    "SD 2 (v)": lambda: stable_diffusion(prediction="v_prediction"),
    "SD image to image": img2img,
    "SD inpainting": inpaint,
    "SD ControlNet": controlnet,
    "LCM": latent_consistency,
    "SDXL": xl,
    "SDXL with moments": playground,
    "SDXL image to image": lambda: xl("Img2Img"),
    "SDXL inpainting": lambda: xl("Inpaint"),
    "SD3": sd3,
    "FLUX": flux,
    "FLUX.2": flux2,
    "Qwen-Image": qwen,
    "Z-Image": z_image,
    "Sana": sana,
    "Sana Sprint": lambda: sana(sprint=True),
    "PixArt-Sigma": pixart,
    "DDPM": lambda: pixels("DDPM"),
    "DDIM": lambda: pixels("DDIM"),
    "AnimateDiff": animatediff,
    "CogView4": cogview4,
    "HiDream": hidream,
    "Stable Cascade": cascade,
    "Kandinsky 5": kandinsky,
    "Wan": wan,
    "Wan 2.2": lambda: wan(packed=True),
    "SD x4 upscaling": upscale,
    "Hunyuan-DiT": hunyuan,
    "Hunyuan-DiT PAG": lambda: hunyuan("PAG"),
    "Hunyuan-DiT ControlNet": lambda: hunyuan("ControlNet"),
    "mini": lambda: mini(),
}


def mini():
    """The embedded generator's class; its maps are noise, so there is no prior."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from clipguide import mini
    from clipguide.mini.pipeline import MiniPipeline
    from clipguide.mini.styles import STYLES

    tokenizer = CLIPTokenizer.from_pretrained(mini.path("guide"))
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        eos_token_id=tokenizer.eos_token_id,
    )
    pipe = MiniPipeline(
        vae=kl(8, latents_mean=[0.1] * 8, latents_std=[1.3] * 8, scaling_factor=1.0),
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=tokenizer,
        prior=None,
        prior_scheduler=None,
        unet=unet(
            8 + 6, out_channels=8, encoder_hid_dim=6 + 16, encoder_hid_dim_type="text_proj",
            class_embed_type="simple_projection",
            projection_class_embeddings_input_dim=len(STYLES) + 16,
        ),
        scheduler=ddim(prediction_type="v_prediction"),
    )
    return pipe, {"prompt": ["a fox", "a cat, 3d"], "maps": noise(BATCH, 6, 4, 4), **SIZE}


def tiny(name: str):
    """A fresh pipeline of always the same weights, and its settings."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe, settings = TINY[name]()
    pipe.set_progress_bar_config(disable=True)
    return pipe, settings


def draw(pipe, settings: dict, *, steps: int = 3, seed: int = 3, **more) -> torch.Tensor:
    """image_N3HW in [0, 1], the frames of videos one after the other."""
    given = {**settings, "num_inference_steps": steps, "output_type": "pt", **more}
    if type(getattr(pipe, "pipe", pipe)).__name__ == "SanaSprintPipeline":
        given["num_inference_steps"] = 2  # what it is made for
    batch = len(given.get("prompt_embeds", range(BATCH)))
    generator = [torch.Generator().manual_seed(seed + i) for i in range(batch)]
    with torch.random.fork_rng():  # some pipelines keep their generators from their scheduler
        torch.manual_seed(seed)
        out = pipe(**given, generator=generator)
    name = next(name for name in ("frames", "images", "image") if hasattr(out, name))
    image = getattr(out, name)
    if not isinstance(image, torch.Tensor):  # plain DDIM's knows no tensors
        image = torch.as_tensor(image).movedim(-1, 1)
    return image.flatten(0, -4).float()

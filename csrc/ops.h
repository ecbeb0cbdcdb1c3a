// The interface of the native backends: every settings struct and every entry point, declared once.
//
// Parameters come in one order: the input arrays, their sizes, the settings, the result arrays and,
// last, the dtype and where to run. Arrays are dense and row-major unless a comment says otherwise.
// S is the storage type that `dtype` names; W is the type of the computation: double if S is
// double, float otherwise. The pointer to an empty array may be null. `images`, `classes`,
// `channels` and `pixels` are numbers; `num_priors` and `num_boxes` are so called because `priors`
// and `boxes` are arrays. `count` is a number of detections. Results do not depend on `threads`.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace mdssd {

// A cudaStream_t.
using Stream = void*;

// The order is that of FLOATS in mdssd/ops/_tensors.py.
enum class DType : int { kFloat32, kFloat16, kBFloat16, kFloat64 };

// The settings of the operators. Each struct has the name and the fields of a class in
// mdssd/ops/_settings.py, from which csrc/bind.cpp fills it. An empty optional means "no limit".

struct BoxCodingSettings {
  double v0;  // variance of the centre
  double v1;  // variance of the size
};

// The order is that of FORCES in mdssd/ops/_settings.py.
enum class Force : int { kBestPrior, kLowQuality, kNone };

struct MatchPriorsSettings {
  double iou_threshold;                 // least overlap of a match
  double iou_eps;                       // added to the area of the union
  bool corners;                         // the priors are x1, y1, x2, y2 instead of centre and size
  std::optional<double> low_threshold;  // from it on a prior is ignored; empty: no band
  int64_t force;                        // a Force
  int64_t top_k;                        // priors that a box takes, with kBestPrior
  std::optional<double> nwd_constant;   // of the Wasserstein distance; empty: the IoU
};

struct EncodeTargetsSettings {
  double iou_threshold;                 // least overlap of a match
  double v0;                            // variance of the centre
  double v1;                            // variance of the size
  double iou_eps;                       // added to the area of the union
  std::optional<double> low_threshold;  // from it on a prior is ignored; empty: no band
  int64_t force;                        // a Force
  int64_t top_k;                        // priors that a box takes, with kBestPrior
  std::optional<double> nwd_constant;   // of the Wasserstein distance; empty: the IoU
};

struct IgnorePriorsSettings {
  double threshold;    // least share of a prior's area that lies in a box to be ignored
  int64_t background;  // what marks a prior as background; one less marks it as ignored
  bool corners;        // the priors are x1, y1, x2, y2 instead of centre and size
};

struct NmsSettings {
  double iou_threshold;  // a box is kept if its IoU with every kept box is at most this
  double iou_eps;        // added to the area of the union
  bool ios;              // divide by the area of the smaller box instead of the union's
  bool diou;             // subtract the squared distance of the centres from the IoU; not with ios
};

struct SoftNmsSettings {
  bool gaussian;          // the decay of scores; if false, it is linear
  double iou_threshold;   // linear: scores decay above this IoU
  double sigma;           // gaussian: the width of the decay
  double score_threshold;  // a box is chosen as long as its score is not below this
  std::optional<int64_t> max_detections;  // boxes of the result; empty: no limit
};

// The order is that of METHODS in mdssd/ops/_settings.py.
enum class MergeMethod : int { kNms, kGreedyNmm, kNmm, kWbf };

struct MergeBoxesSettings {
  double threshold;  // boxes are merged if their IoU is above this
  int64_t method;    // a MergeMethod
  bool ios;          // divide by the area of the smaller box instead of the union's
  int64_t models;    // with kWbf: a mean score is reduced by the share of models with a box
};

struct MultiboxLossSettings {
  double neg_pos_ratio;  // mined negatives per positive
  bool per_image;        // one loss per image instead of one per batch
};

struct SigmoidFocalLossSettings {
  double positive_weight;  // of the entries of a prior's own class
  double negative_weight;  // of all other entries
  double gamma;            // exponent of the probability of what is wrong
  bool per_image;          // one loss per image instead of one per batch
  bool normalise;          // divide by the number of positives
};

struct BoxLossSettings {
  int64_t kind;         // a BoxLossKind (csrc/loss_math.h)
  double v0;            // variance of the centre
  double v1;            // variance of the size
  double nwd_constant;  // divides Wasserstein's distance
  double eps;           // added to what is divided by
  bool per_image;       // one loss per image instead of one per batch
  bool normalise;       // divide by the number of positives
};

// The order is that of SUPPRESSIONS in mdssd/ops/_settings.py.
enum class SuppressionKind : int { kNms, kSoftLinear, kSoftGaussian };

struct DetectionOutputSettings {
  double score_threshold;               // a score must be above this
  double nms_threshold;                 // NMS keeps an IoU of at most this
  int64_t top_k;                        // candidates of a class that enter NMS
  int64_t max_detections;               // rows of the result
  double v0;                            // variance of the centre
  double v1;                            // variance of the size
  bool softmax;                         // if false, the logits are scores
  bool per_class;                       // each class has rows of its own
  bool keep_empty;                      // if false, boxes of zero area suppress one another
  double iou_eps;                       // added to the area of the union
  std::optional<double> max_log_scale;  // largest log(size / prior's size) of a decoded box
  std::optional<double> clip_width;     // decoded boxes are clipped to this width ...
  std::optional<double> clip_height;    // ... and this height; both are set or neither
  bool ios;                             // NMS divides by the area of the smaller box
  bool sigmoid;                         // unless softmax, scores are the sigmoid of the logits
  bool background;                      // column 0 is that of the background
  std::optional<std::vector<int64_t>> levels;  // priors of each feature map
  std::optional<int64_t> top_k_per_level;      // candidates of a level, of all classes together
  bool class_agnostic;                  // one NMS, and one top_k, over all classes together
  int64_t suppression;                  // a SuppressionKind
  double soft_sigma;                    // the width of a Gaussian's decay
  bool diou;  // NMS subtracts the squared distance of the centres; not with ios

  // The priors of each level: of a single one if `levels` has none.
  std::vector<int64_t> level_sizes(int64_t num_priors) const {
    return levels && !levels->empty() ? *levels : std::vector<int64_t>{num_priors};
  }
};

// --- CPU -----------------------------------------------------------------------------------------

// a [n, 4], b [m, 4] -> iou [n, m], all S.
void box_iou_cpu(const void* a, int64_t n, const void* b, int64_t m, void* iou, DType dtype,
                 int threads);
// grad [n, m] -> grad_a [n, 4], grad_b [m, 4], all S.
void box_iou_backward_cpu(const void* grad, const void* a, int64_t n, const void* b, int64_t m,
                          void* grad_a, void* grad_b, DType dtype, int threads);

// boxes and loc [rows, 4] S, priors [num_priors, 4] W. Row i belongs to prior i % num_priors.
void encode_boxes_cpu(const void* boxes, const void* priors, int64_t rows, int64_t num_priors,
                      const BoxCodingSettings& settings, void* loc, DType dtype, int threads);
void encode_boxes_backward_cpu(const void* grad, const void* boxes, const void* priors,
                               int64_t rows, int64_t num_priors, const BoxCodingSettings& settings,
                               void* grad_boxes, DType dtype, int threads);
void decode_boxes_cpu(const void* loc, const void* priors, int64_t rows, int64_t num_priors,
                      const BoxCodingSettings& settings, void* boxes, DType dtype, int threads);
void decode_boxes_backward_cpu(const void* grad, const void* loc, const void* priors, int64_t rows,
                               int64_t num_priors, const BoxCodingSettings& settings,
                               void* grad_loc, DType dtype, int threads);

// gt [offsets[images], 4] W, offsets [images + 1], priors [num_priors, 4] W ->
// index [images, num_priors], iou [images, num_priors].
void match_priors_cpu(const void* gt, const int64_t* offsets, int64_t images, const void* priors,
                      int64_t num_priors, const MatchPriorsSettings& settings, int64_t* index,
                      float* iou, DType dtype, int threads);
// Also gt_labels [offsets[images]] -> loc [images, num_priors, 4] W, labels [images, num_priors].
void encode_targets_cpu(const void* gt, const int64_t* gt_labels, const int64_t* offsets,
                        int64_t images, const void* priors, int64_t num_priors,
                        const EncodeTargetsSettings& settings, void* loc, int64_t* labels,
                        DType dtype, int threads);

// marks [images, num_priors], ignored [offsets[images], 4] W, offsets [images + 1],
// priors [num_priors, 4] W -> result [images, num_priors].
void ignore_priors_cpu(const int64_t* marks, const void* ignored, const int64_t* offsets,
                       int64_t images, const void* priors, int64_t num_priors,
                       const IgnorePriorsSettings& settings, int64_t* result, DType dtype,
                       int threads);

// boxes [num_boxes, 4] W, scores [num_boxes] W, idxs [num_boxes] or null -> keep [num_boxes].
// Returns how many entries of keep are set; the others are left as they are.
int64_t nms_cpu(const void* boxes, const void* scores, const int64_t* idxs, int64_t num_boxes,
                const NmsSettings& settings, int64_t* keep, DType dtype, int threads);

// boxes [num_boxes, 4] W, scores [num_boxes] W, labels [num_boxes] or null -> keep and
// kept_scores W, with room for min(num_boxes, max_detections) entries. Returns how many are set; the
// others are left as they are.
int64_t soft_nms_cpu(const void* boxes, const void* scores, const int64_t* labels,
                     int64_t num_boxes, const SoftNmsSettings& settings, int64_t* keep,
                     void* kept_scores, DType dtype, int threads);

// boxes [num_boxes, 4] W, scores [num_boxes] W, labels and images [num_boxes] or null ->
// merged_boxes [num_boxes, 4] W, merged_scores [num_boxes] W, index [num_boxes]. Returns how many
// entries of the results are set; the others are left as they are.
int64_t merge_boxes_cpu(const void* boxes, const void* scores, const int64_t* labels,
                        const int64_t* images, int64_t num_boxes,
                        const MergeBoxesSettings& settings, void* merged_boxes,
                        void* merged_scores, int64_t* index, DType dtype, int threads);

// loc [images, num_priors, 4] S, logits [images, num_priors, classes] S,
// priors [num_priors, 4] W ->
// boxes [lists, max_detections, 4] W, scores [lists, max_detections] W, labels, count [lists].
// `lists` is images or, with per_class, images times the classes except background. The results must
// hold zeros.
void detection_output_cpu(const void* loc, const void* logits, const void* priors, int64_t images,
                          int64_t num_priors, int64_t classes,
                          const DetectionOutputSettings& settings, void* boxes, void* scores,
                          int64_t* labels, int64_t* count, DType dtype, int threads);

// loc [images, num_priors, 4] S, logits [images, num_priors, classes] S, loc_targets like loc but
// W, labels [images, num_priors] -> losses [2, groups] W (localisation, confidence), selected
// [images, num_priors], normaliser [groups], which is max(1, positives). A group is an image with
// per_image, else the batch. Returns false if a label is outside [-1, classes); the results are
// then meaningless.
bool multibox_loss_cpu(const void* loc, const void* logits, const void* loc_targets,
                       const int64_t* labels, int64_t images, int64_t num_priors, int64_t classes,
                       const MultiboxLossSettings& settings, void* losses, bool* selected,
                       int64_t* normaliser, DType dtype, int threads);
// The gradients of the two losses, divided by the normaliser, are [groups] W, and a group has
// group_rows rows -> grad_loc, grad_logits S.
void multibox_loss_backward_cpu(const void* grad_loc_loss, const void* grad_conf_loss,
                                const void* loc, const void* logits, const void* loc_targets,
                                const int64_t* labels, const bool* selected, int64_t rows,
                                int64_t group_rows, int64_t classes, void* grad_loc,
                                void* grad_logits, DType dtype, int threads);

// logits [rows, classes] S, labels [rows] -> loss [groups] W, normaliser [groups]. The rows are
// those of all images; a group, an image with per_image and else the batch, has group_rows of them.
// The normaliser is max(1, positives), or 1 unless settings.normalise. Returns false if a label is
// outside [-1, classes]; the results are then meaningless.
bool sigmoid_focal_loss_cpu(const void* logits, const int64_t* labels, int64_t groups,
                            int64_t group_rows, int64_t classes,
                            const SigmoidFocalLossSettings& settings, void* loss,
                            int64_t* normaliser, DType dtype, int threads);
// The gradient of the loss, divided by the normaliser, is [groups] W -> grad_logits S.
void sigmoid_focal_loss_backward_cpu(const void* grad_loss, const void* logits,
                                     const int64_t* labels, int64_t groups, int64_t group_rows,
                                     int64_t classes, const SigmoidFocalLossSettings& settings,
                                     void* grad_logits, DType dtype, int threads);

// loc [rows, 4] S, loc_targets like loc but W, labels [rows], priors [num_priors, 4] W; row i
// belongs to prior i % num_priors -> loss, normaliser as above.
void box_loss_cpu(const void* loc, const void* loc_targets, const int64_t* labels,
                  const void* priors, int64_t groups, int64_t group_rows, int64_t num_priors,
                  const BoxLossSettings& settings, void* loss, int64_t* normaliser, DType dtype,
                  int threads);
// The gradient of the loss, divided by the normaliser, is [groups] W -> grad_loc S.
void box_loss_backward_cpu(const void* grad_loss, const void* loc, const void* loc_targets,
                           const int64_t* labels, const void* priors, int64_t groups,
                           int64_t group_rows, int64_t num_priors, const BoxLossSettings& settings,
                           void* grad_loc, DType dtype, int threads);

// x, y [images, channels, pixels] S, or [images, pixels, channels] if channels_last;
// scale [channels] W; rnorm [images, pixels] W, the reciprocal of each pixel's norm.
void l2norm_cpu(const void* x, const void* scale, int64_t images, int64_t channels, int64_t pixels,
                bool channels_last, double eps, void* y, void* rnorm, DType dtype, int threads);
void l2norm_backward_cpu(const void* grad, const void* x, const void* scale, const void* rnorm,
                         int64_t images, int64_t channels, int64_t pixels, bool channels_last,
                         void* grad_x, void* grad_scale, DType dtype, int threads);
void l2norm_add_relu_cpu(const void* a, const void* b, const void* scale_a, const void* scale_b,
                         int64_t images, int64_t channels, int64_t pixels, bool channels_last,
                         double eps, void* y, void* rnorm_a, void* rnorm_b, DType dtype,
                         int threads);
void l2norm_add_relu_backward_cpu(const void* grad, const void* y, const void* a, const void* b,
                                  const void* scale_a, const void* scale_b, const void* rnorm_a,
                                  const void* rnorm_b, int64_t images, int64_t channels,
                                  int64_t pixels, bool channels_last, void* grad_a, void* grad_b,
                                  void* grad_scale_a, void* grad_scale_b, DType dtype,
                                  int threads);

// images [num_images, height, width, channels] ->
// out [num_images, out_height, out_width, channels].
void resize_cpu(const uint8_t* images, int64_t num_images, int64_t height, int64_t width,
                int64_t channels, int64_t out_height, int64_t out_width, uint8_t* out, int threads);

// The largest of the numbers S (NaN if one is NaN, -infinity if there is none), one of them, and the
// lowest of other numbers.
double largest_cpu(const void* numbers, int64_t count, DType dtype);
double number_cpu(const void* numbers, int64_t place, DType dtype);
int64_t lowest_cpu(const int64_t* numbers, int64_t count);

// --- CUDA ----------------------------------------------------------------------------------------
//
// The shapes are those of the CPU functions unless a comment says otherwise. Arrays are on the
// device and start at a multiple of 16 bytes. No function waits for the device. A `workspace` has
// the number of bytes that the function named *_workspace returns.

void box_iou_cuda(const void* a, int64_t n, const void* b, int64_t m, void* iou, DType dtype,
                  Stream stream);
void box_iou_backward_cuda(const void* grad, const void* a, int64_t n, const void* b, int64_t m,
                           void* grad_a, void* grad_b, DType dtype, Stream stream);

void encode_boxes_cuda(const void* boxes, const void* priors, int64_t rows, int64_t num_priors,
                       const BoxCodingSettings& settings, void* loc, DType dtype, Stream stream);
void encode_boxes_backward_cuda(const void* grad, const void* boxes, const void* priors,
                                int64_t rows, int64_t num_priors, const BoxCodingSettings& settings,
                                void* grad_boxes, DType dtype, Stream stream);
void decode_boxes_cuda(const void* loc, const void* priors, int64_t rows, int64_t num_priors,
                       const BoxCodingSettings& settings, void* boxes, DType dtype, Stream stream);
void decode_boxes_backward_cuda(const void* grad, const void* loc, const void* priors, int64_t rows,
                                int64_t num_priors, const BoxCodingSettings& settings,
                                void* grad_loc, DType dtype, Stream stream);

// gt S, but not double, and float with nwd_constant, top_k above 1 or Force::kLowQuality; priors
// float; offsets on the host, read before the call returns.
void match_priors_cuda(const void* gt, const int64_t* offsets, int64_t images, const void* priors,
                       int64_t num_priors, const MatchPriorsSettings& settings, int64_t* index,
                       float* iou, void* workspace, DType dtype, Stream stream);
// gt and loc S, as above.
void encode_targets_cuda(const void* gt, const int64_t* gt_labels, const int64_t* offsets,
                         int64_t images, const void* priors, int64_t num_priors,
                         const EncodeTargetsSettings& settings, void* loc, int64_t* labels,
                         void* workspace, DType dtype, Stream stream);
// For both; num_truths is offsets[images], and top_k at most num_priors.
int64_t match_priors_workspace(int64_t num_truths, int64_t top_k);
// ignored and priors float; offsets as above.
void ignore_priors_cuda(const int64_t* marks, const void* ignored, const int64_t* offsets,
                        int64_t images, const void* priors, int64_t num_priors,
                        const IgnorePriorsSettings& settings, int64_t* result, Stream stream);

// boxes [num_boxes, 4] S; order [num_boxes], the indices of the boxes by falling score ->
// keep [num_boxes]: the kept ones in this order, then zeros; kept [1]: how many they are.
void nms_cuda(const void* boxes, const int64_t* order, const int64_t* idxs, int64_t num_boxes,
              const NmsSettings& settings, int64_t* keep, int64_t* kept, void* workspace,
              DType dtype, Stream stream);
int64_t nms_workspace(int64_t num_boxes, DType dtype);

// The boxes [num_boxes, 4] W and their scores W are sorted by label; starts: the position of the
// first box of each box's label, or null if all have one. keys: memory for num_boxes entries W ->
// softened [num_boxes] W: the lowered scores of the chosen boxes, and -inf for the others.
void soft_nms_cuda(const void* boxes, const void* scores, const int64_t* starts, int64_t num_boxes,
                   const SoftNmsSettings& settings, void* keys, void* softened, DType dtype,
                   Stream stream);

// Three steps of merge_boxes, between which mdssd/ops/_merging.py sorts. The boxes [num_boxes, 4] W
// are sorted by group (image and label) and, within a group, by falling score; a position is an
// index into this order. All arrays have num_boxes entries unless a comment says otherwise.
//
// candidates: positions, rising, or null for all; box i is compared with candidates[begin[i]] to
// candidates[end[i] - 1], where begin and end do not fall -> parents: the first of these that
// overlaps box i, or else i.
void merge_parents_cuda(const void* boxes, const int64_t* candidates, const int64_t* begin,
                        const int64_t* end, int64_t num_boxes, const MergeBoxesSettings& settings,
                        int64_t* parents, DType dtype, Stream stream);
// members: positions, by merged box, and within one in the order in which they join it, its first
// box first; end[i]: where the merged box of members[i] ends -> merged [num_boxes, 4] W: at the
// position of each first box, the box that its members make.
void merge_members_cuda(const void* boxes, const int64_t* members, const int64_t* end,
                        int64_t num_boxes, const MergeBoxesSettings& settings, void* merged,
                        DType dtype, Stream stream);
// scores W; starts: the position of the first box of each box's group -> fused [num_boxes, 4] W,
// fused_scores W and is_first, which is set for the first box of each fused box.
void merge_fused_cuda(const void* boxes, const void* scores, const int64_t* starts,
                      int64_t num_boxes, const MergeBoxesSettings& settings, void* fused,
                      void* fused_scores, bool* is_first, void* workspace, DType dtype,
                      Stream stream);
int64_t merge_fused_workspace(int64_t num_boxes, DType dtype);

// S is not double. The score threshold is below 1, max_detections at most 1024, top_k at most 1024
// or not below num_priors <= 1024, and num_priors * classes is at most 2^32.
void detection_output_cuda(const void* loc, const void* logits, const void* priors, int64_t images,
                           int64_t num_priors, int64_t classes,
                           const DetectionOutputSettings& settings, void* boxes, void* scores,
                           int64_t* labels, int64_t* count, void* workspace, DType dtype,
                           Stream stream);
int64_t detection_output_workspace(int64_t images, int64_t num_priors, int64_t classes,
                                   const DetectionOutputSettings& settings);

// loc_loss, conf_loss [groups] W. Throws std::length_error for more than 2^31 - 1 priors or
// classes. A label outside [-1, classes) makes the confidence loss NaN.
void multibox_loss_cuda(const void* loc, const void* logits, const void* loc_targets,
                        const int64_t* labels, int64_t images, int64_t num_priors, int64_t classes,
                        const MultiboxLossSettings& settings, void* loc_loss, void* conf_loss,
                        bool* selected, int64_t* normaliser, void* workspace, DType dtype,
                        Stream stream);
int64_t multibox_loss_workspace(int64_t images, int64_t num_priors, int64_t classes,
                                const MultiboxLossSettings& settings, DType dtype);
// The gradients of the losses, not yet divided by the normaliser, are [groups] W.
void multibox_loss_backward_cuda(const void* grad_loc_loss, const void* grad_conf_loss,
                                 const void* loc, const void* logits, const void* loc_targets,
                                 const int64_t* labels, const bool* selected,
                                 const int64_t* normaliser, int64_t rows, int64_t group_rows,
                                 int64_t classes, void* grad_loc, void* grad_logits, DType dtype,
                                 Stream stream);

// A label outside [-1, classes] makes the loss, and the gradient of its logits, NaN. Throws
// std::length_error for more than 2^31 - 1 classes.
void sigmoid_focal_loss_cuda(const void* logits, const int64_t* labels, int64_t groups,
                             int64_t group_rows, int64_t classes,
                             const SigmoidFocalLossSettings& settings, void* loss,
                             int64_t* normaliser, void* workspace, DType dtype, Stream stream);
// The gradient of the loss, not yet divided by the normaliser, is [groups] W.
void sigmoid_focal_loss_backward_cuda(const void* grad_loss, const void* logits,
                                      const int64_t* labels, const int64_t* normaliser,
                                      int64_t groups, int64_t group_rows, int64_t classes,
                                      const SigmoidFocalLossSettings& settings, void* grad_logits,
                                      DType dtype, Stream stream);
void box_loss_cuda(const void* loc, const void* loc_targets, const int64_t* labels,
                   const void* priors, int64_t groups, int64_t group_rows, int64_t num_priors,
                   const BoxLossSettings& settings, void* loss, int64_t* normaliser,
                   void* workspace, DType dtype, Stream stream);
// The gradient of the loss, not yet divided by the normaliser, is [groups] W.
void box_loss_backward_cuda(const void* grad_loss, const void* loc, const void* loc_targets,
                            const int64_t* labels, const void* priors, const int64_t* normaliser,
                            int64_t groups, int64_t group_rows, int64_t num_priors,
                            const BoxLossSettings& settings, void* grad_loc, DType dtype,
                            Stream stream);
// For both forward functions.
int64_t group_sums_workspace(int64_t groups);

void l2norm_cuda(const void* x, const void* scale, int64_t images, int64_t channels, int64_t pixels,
                 bool channels_last, double eps, void* y, void* rnorm, DType dtype, Stream stream);
void l2norm_backward_cuda(const void* grad, const void* x, const void* scale, const void* rnorm,
                          int64_t images, int64_t channels, int64_t pixels, bool channels_last,
                          void* grad_x, void* grad_scale, void* workspace, DType dtype,
                          Stream stream);
void l2norm_add_relu_cuda(const void* a, const void* b, const void* scale_a, const void* scale_b,
                          int64_t images, int64_t channels, int64_t pixels, bool channels_last,
                          double eps, void* y, void* rnorm_a, void* rnorm_b, DType dtype,
                          Stream stream);
void l2norm_add_relu_backward_cuda(const void* grad, const void* y, const void* a, const void* b,
                                   const void* scale_a, const void* scale_b, const void* rnorm_a,
                                   const void* rnorm_b, int64_t images, int64_t channels,
                                   int64_t pixels, bool channels_last, void* grad_a, void* grad_b,
                                   void* grad_scale_a, void* grad_scale_b, void* workspace,
                                   DType dtype, Stream stream);
// For the two backward functions; maps is 1, or 2 with add and ReLU.
int64_t l2norm_workspace(int64_t maps, int64_t channels, DType dtype);

void resize_cuda(const uint8_t* images, int64_t num_images, int64_t height, int64_t width,
                 int64_t channels, int64_t out_height, int64_t out_width, uint8_t* out,
                 Stream stream);

}  // namespace mdssd
